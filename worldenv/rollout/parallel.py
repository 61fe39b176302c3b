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


_inherited = 1  # threads of torch that this process had when it was forked


def _note_threads() -> None:
    global _inherited
    _inherited = torch.get_num_threads()


os.register_at_fork(after_in_child=_note_threads)


def after_fork() -> None:
    """In a process forked from one where torch used several threads, use one, and warn: the threads of the parent are
    gone, and torch would wait for them forever."""
    if _inherited > 1 and torch.get_num_threads() > 1:
        warnings.warn(
            f"this process was forked, and torch's {_inherited} threads do not exist in it: it continues with one; for "
            "more, start it with multiprocessing's 'spawn'",
            stacklevel=3,
        )
        torch.set_num_threads(1)
