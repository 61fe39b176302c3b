"""How much memory is free, what errors say that there is none, and how the C library hands it out."""

import ctypes
import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from worldenv.errors import UserError
from worldenv.launch.share import ranks_here

# <malloc.h> of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MIB = 1 << 20
GROWTH_BYTES = 1024 * _MIB
PASS_SHARE = 0.5  # of the memory that is free beside the slots, for one network pass; the rest may be fragmented
# What a message says where memory ran out: torch's allocator, the C++ library, oneDNN, a thread without a stack, and
# the compiled ops, whose calls of torch only make tensors (torch hides what failed in them).
_RAN_OUT = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|bad allocation|"
    r"could not create a (primitive|memory)|can't start new thread|resource temporarily unavailable|"
    r'torch_call_dispatcher\( *"aten::(new_empty|empty_like|contiguous)".*API call failed|'
    r"torch_parallel_for\(.*API call failed",
    re.IGNORECASE | re.DOTALL,
)
Failure = (RuntimeError, MemoryError, OSError)  # the classes of errors of which `ran_out` knows some
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Of a control group: its limit, what is used of that, and the line of memory.stat that counts cached files (they make
# room when memory is asked for). By version.
_GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device without swapping, within the limits of container and process.

    The ranks of a machine share what its memory has free.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    shared = min((_system_free(), *_container_free())) // ranks_here()
    return max(0, min((shared, *_process_free())))


def _system_free() -> int:
    try:
        with open(_PROC / "meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_free() -> Iterator[int]:
    """What the control groups of this process leave: its own one, and those around it."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for root in (_CGROUPS / "memory",) if controllers else (_CGROUPS, _CGROUPS / "unified"):
            for depth in range(len(names) + 1):
                yield from _group_free(root.joinpath(*names[:depth]), *_GROUP_FILES[1 if controllers else 2])


def _group_free(group: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    try:
        most = int((group / limit).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield most - int((group / used).read_text()) + int(stat.get(cached, 0))
    except (OSError, ValueError):  # the limit is "max", or there is no such group
        return


def _process_free() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    try:
        pages = [int(number) for number in (_PROC / "self" / "statm").read_text().split()]
    except OSError:
        return
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        most, _ = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            yield most - used * resource.getpagesize()


def fitting(work: Callable[[], object], count: int, device: torch.device) -> int | None:
    """How many episodes fit one pass on a GPU, from the memory that `work` takes for `count`; None on a CPU."""
    if device.type != "cuda":
        return None
    work()  # compiles, and allocates what stays allocated
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    each = (torch.cuda.max_memory_allocated(device) - before) / count
    return max(1, int(PASS_SHARE * free_bytes(device) / max(each, 1)))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device and in whichever library."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_RAN_OUT.search(str(error)))


@contextmanager
def out_of_memory_says(advice: str) -> Iterator[None]:
    """Make a UserError of one line of every error that says that memory ran out."""
    try:
        yield
    except Failure as error:
        if not ran_out(error):
            raise
        raise UserError(f"out of memory: {advice}") from error


def return_freed_memory() -> None:
    """Give the memory of freed tensors back to the system, for libraries that take theirs from there (oneDNN's code).

    Without glibc it does nothing.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class FreedMemory:
    """Returns freed memory to the system whenever the process has grown by a GiB since the last time.

    glibc 2.36 may be unable to use freed memory again: torch asks for aligned memory, which takes a little more than
    the hole that a tensor of the same size has left. A run grew by 45 MB/s, to 13 GB (benchmarks/LOG.md).
    """

    def __init__(self) -> None:
        self.before = resident_bytes()

    def check(self) -> None:
        """Call it now and then; it takes 20 us, or as long as it takes to return the memory."""
        now = resident_bytes()
        if now > self.before + GROWTH_BYTES:
            return_freed_memory()
            self.before = resident_bytes()
        self.before = min(self.before, now)


def resident_bytes() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    try:
        return int((_PROC / "self" / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


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
