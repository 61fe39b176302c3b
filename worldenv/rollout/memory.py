"""How much memory is free, and how the C library hands it out."""

import ctypes
import os
from collections.abc import Callable

import torch

# <malloc.h> of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MIB = 1 << 20
PASS_SHARE = 0.5  # of the memory that is free beside the slots, for one network pass; the rest may be fragmented


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fitting(work: Callable[[], object], count: int, device: torch.device) -> int | None:
    """How many episodes fit one pass on a GPU, from the memory that `work` takes for `count`; None on a CPU."""
    if device.type != "cuda":
        return None
    work()  # compiles, and allocates what stays allocated
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    each = (torch.cuda.max_memory_allocated(device) - before) / count
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(PASS_SHARE * (free_bytes(device) + unused) / max(each, 1)))


def ran_out(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for new ones instead of returning it to the system.

    Every fresh page costs a page fault: 12 % of a rollout on a CPU (benchmarks/LOG.md). This changes the whole process,
    so programs call it, and libraries do not. Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * _MIB)):
        mallopt(parameter, value)
