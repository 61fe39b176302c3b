"""Work on many episodes in parts: on a CPU what fits its cache, one thread a part; on a GPU one after the other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
CPU = torch.device("cpu")
CACHED = 64  # episodes whose activations a CPU still holds close, and whose calls cost little


def sent(index: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on a device; neither waits for the other."""
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)


def in_parts(
    work: Callable[[slice], Result],
    count: int,
    size: int | None = None,  # None: CACHED on a CPU, everything at once on a GPU
    device: torch.device = CPU,
) -> list[Result]:
    """work(part) for consecutive slices of at most `size` that cover range(count), in order.

    One after the other, all but the last are of `size`: what a CUDA graph computes beyond a part then is beyond all.
    On a CPU parts run side by side on as many threads as torch may use, each with a single thread inside: two such
    threads do 1.3 times the work of one part on two threads (benchmarks/LOG.md).
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    size = max(1, size or (CACHED if device.type == "cpu" else count))
    if threads > 1:  # parts of one size: no thread waits for another's last one
        rounds = -(-count // (size * threads))
        size = max(1, -(-count // max(1, rounds * threads)))
    parts = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    if threads == 1 or len(parts) <= 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(work, parts))
        finally:
            torch.set_num_threads(threads)
