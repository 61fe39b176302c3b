"""The ops, one module each, and the only door to compiled code. Nothing lists them: import the one you need.

The device of the tensor picks the face. Where no face is built for a device, the op's reference is what torch runs
there, and `worldenv-info` says so; a face that cannot take its input raises. WORLDENV_BACKEND=reference, read once at
import, makes every op run its reference.
"""

import os
from collections.abc import Sequence

import torch

try:
    from worldenv import _C  # noqa: F401  importing it registers the CPU faces with torch
except ImportError as error:
    raise ImportError(
        f"worldenv._C cannot be loaded ({error}). Build it for this Python and this torch: run `pip install .` (or "
        "`python setup.py build_ext --inplace`) in the source tree."
    ) from error

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BACKEND = os.environ.get("WORLDENV_BACKEND", "")
if BACKEND not in ("", "reference"):
    raise ValueError(f"WORLDENV_BACKEND is {BACKEND!r}; it should be 'reference' or not be set")


def check_tensors(
    wanted: dict[str, tuple[torch.Tensor, Sequence[int]]], dtypes: Sequence[torch.dtype] = (torch.float32,)
) -> None:
    """Raise ValueError unless every tensor has its shape, one of `dtypes`, all the same, and is where the first is."""
    first, (reference, _) = next(iter(wanted.items()))
    allowed = (reference.dtype,) if reference.dtype in dtypes else dtypes
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it should be {list(shape)}")
        if tensor.dtype not in allowed:
            cast = f": pass {name}.float()" if allowed == (torch.float32,) else ""
            raise ValueError(f"{name} is {tensor.dtype}; it should be {' or '.join(map(str, allowed))}{cast}")
        if tensor.device != reference.device:
            raise ValueError(f"{name} is on {tensor.device}; it should be on {reference.device}, as {first} is")
