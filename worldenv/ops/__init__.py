"""The ops, one module each, and the only door to compiled code. Nothing lists them: import the one you need.

The device of the tensor picks the face: C++ on the CPU; on a CUDA device CUDA C++, or Triton for an op that CUDA C++
lacks and for heads of attention that it does not take. Where no face is built for a device, the op's reference is what
torch runs there, and `worldenv-info` says so; a face that cannot take its input raises.

WORLDENV_BACKEND, read once at import: `reference` makes every op run its reference; `triton` leaves out CUDA C++, so
that Triton runs every op it has on a CUDA device.
"""

import os
from collections.abc import Callable, Sequence
from importlib import import_module, metadata

import torch

from worldenv.errors import UserError


def _why_not_loaded(error: ImportError) -> str:
    try:
        needs = [need for need in metadata.requires("worldenv") or () if need.startswith("torch==")]
    except metadata.PackageNotFoundError:
        needs = []  # it runs from a source tree
    built = f" It was built against {needs[0]}." if needs else ""
    return (
        f"worldenv._C cannot be loaded with torch {torch.__version__} ({error}).{built} With torch 2.11 or newer, "
        "build it again: run `pip install --no-build-isolation --no-deps .` "
        "(or `python setup.py build_ext --inplace`) in the source tree."
    )


try:
    from worldenv import _C  # noqa: F401  importing it registers the CPU faces with torch
except ImportError as error:
    raise ImportError(_why_not_loaded(error)) from error

NOT_OPS = ("constants", "packed")  # modules here that several ops share
CUDA_HEADS = (64, 128)  # numbers of a head of attention that CUDA C++ takes
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BACKEND = os.environ.get("WORLDENV_BACKEND", "")
if BACKEND not in ("", "reference", "triton"):
    raise UserError(f"WORLDENV_BACKEND is {BACKEND!r}; it should be 'reference' or 'triton' or not be set")

CUDA_ERROR = "WORLDENV_BACKEND=triton" if BACKEND == "triton" else None  # why no CUDA C++ face can run
if CUDA_ERROR is None:
    try:
        from worldenv import _cuda  # noqa: F401  importing it registers the CUDA C++ faces with torch
    except ImportError as error:  # it is built only where torch has CUDA; the reason is kept and shown
        CUDA_ERROR = str(error)

if torch.cuda.is_available():
    from worldenv import kernels

    if kernels.TRITON_ERROR is None:
        kernels.register()
    elif BACKEND == "triton":
        raise UserError(f"WORLDENV_BACKEND is 'triton', but triton cannot be loaded: {kernels.TRITON_ERROR}")
elif BACKEND == "triton":
    raise UserError("WORLDENV_BACKEND is 'triton', but torch finds no CUDA device: leave it unset")


def has_face(name: str, device: torch.device) -> bool:
    """Whether op `name` has compiled code for tensors of this device; otherwise plain PyTorch, its reference, runs.

    Raises ModuleNotFoundError if there is no such op.
    """
    import_module(f"worldenv.ops.{name}")
    key = torch._C._dispatch_key_for_device(device.type)
    return BACKEND != "reference" and torch._C._dispatch_has_kernel_for_dispatch_key(f"worldenv::{name}", key)


def attention_face(name: str, ring: torch.Tensor, dtype: torch.dtype | None = None) -> Callable:
    """What runs op `name` on a ring [B, G, C, D]: Triton where CUDA C++ does not take D or a dtype of queries."""
    taken = ring.shape[-1] in CUDA_HEADS and dtype is not torch.float32
    if ring.is_cuda and not taken and name in kernels.FACES:
        return kernels.FACES[name]
    return getattr(torch.ops.worldenv, name)


def missing_faces(names: Sequence[str], device: torch.device) -> list[str]:
    """Those of the ops `names` that would run their reference on this device, in the same order.

    The answer is about this process: where torch finds no CUDA device, no op has a face for one. Raises
    ModuleNotFoundError if there is no such op.
    """
    return [name for name in names if not has_face(name, device)]


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
