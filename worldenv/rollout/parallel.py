"""Work on many episodes in parts: on a CPU parts that fit its cache, one thread each; on a GPU one after another."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
CPU = torch.device("cpu")
HOME = os.getpid()  # of the process that imported this; a forked one has another number
CACHED = 64  # episodes per part: activations fit a CPU's cache, and the calls cost little in comparison


def sent(index: Tensor, device: torch.device) -> Tensor:
    """A copy of a host tensor on a device; neither waits for the other."""
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)


def in_parts(
    work: Callable[[slice], Result],
    count: int,
    size: int | None = None,  # None: CACHED on a CPU, everything at once on a GPU
    device: torch.device = CPU,
) -> list[Result]:
    """work(part) for consecutive slices of at most `size` that cover range(count), in order.

    On a GPU all parts but the last have exactly `size`: only in the last one does a CUDA graph, which computes a whole
    bucket, compute more than the part. On a CPU the parts run on as many threads as torch may use, one thread each: two
    parts side by side do 1.3 times the work of one part on two threads (benchmarks/LOG.md).
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    size = max(1, size or (CACHED if device.type == "cpu" else count))
    if threads > 1:  # equal parts, so that no thread waits for another
        rounds = -(-count // (size * threads))
        size = max(1, -(-count // max(1, rounds * threads)))
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    if threads == 1 or len(parts) <= 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, initializer=_settle, initargs=(torch.get_default_device(),)) as pool:
        try:
            return list(pool.map(work, parts))
        finally:
            torch.set_num_threads(threads)


def _settle(device: torch.device) -> None:
    """Let a new thread compute alone, with the default device of its maker; the other modes of torch it has afresh."""
    torch.set_num_threads(1)
    if device != CPU:
        torch.set_default_device(device)


def after_fork() -> None:
    """In a forked process, let torch use one thread: those of its parent are gone, and it would wait for them forever.

    It says so with a warning, once.
    """
    if os.getpid() != HOME and torch.get_num_threads() > 1:
        warnings.warn(
            f"this process was forked, which torch's {torch.get_num_threads()} threads do not survive: it goes on with "
            "1; start processes with multiprocessing's 'spawn' to keep them",
            stacklevel=3,
        )
        torch.set_num_threads(1)
