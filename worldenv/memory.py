"""How the C library hands out memory."""

import ctypes

# <malloc.h> of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MIB = 1 << 20


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones instead of giving each back to the system.

    Fresh pages cost a fault each: 12 % of a rollout on a CPU (benchmarks/LOG.md). For programs of our own, not for
    libraries: it changes the whole process. Elsewhere than with glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * _MIB)):
        mallopt(parameter, value)
