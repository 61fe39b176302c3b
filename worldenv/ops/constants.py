"""Numbers from the program as tensors, brought to a device once: a CUDA graph must not copy them from the host."""

import functools

import torch
from torch import Tensor


def constant(values: tuple, like: Tensor) -> Tensor:
    """These numbers, nested tuples of them for more dimensions, with the dtype and on the device of `like`; shared, so
    not to be written to."""
    if torch.compiler.is_compiling():  # torch traces through the cache anyway, and warns
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    return _constant(values, like.dtype, like.device)


@functools.cache
def _constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it will be used outside of it, too
        return torch.tensor(values, dtype=dtype, device=device)
