"""Triton faces of the ops, one file each; installed as `worldenv.kernels`. Can be imported without triton.

A file marks its launchers with `face`; nothing lists them. On a CUDA device Triton runs an op for which the CUDA C++
module has no face, and attention whose heads it does not take. Of `patchify`, `spatial_softmax` and `adagn` the
gradient has no face: where one is wanted, their references run.
"""

import pkgutil
from collections.abc import Callable
from functools import wraps
from importlib import import_module

import torch

TRITON_ERROR: str | None = None  # why no Triton face can run; None where triton imports
FACES: dict[str, Callable] = {}  # by op: the launchers of the files that were imported, on the device of their tensors
RUNS: set[str] = set()  # the ops that Triton runs on CUDA tensors

try:
    import triton  # noqa: F401
except Exception as error:  # a broken install raises more than ImportError; the reason is kept and shown
    TRITON_ERROR = f"{type(error).__name__}: {error}"


def face(launcher: Callable) -> Callable:
    """Mark `launcher` as the Triton face of the op that has its name. It takes and gives what the op's schema says."""
    FACES[launcher.__name__] = _where_its_tensors_are(launcher)
    return launcher


def register() -> None:
    """Import every file and let its faces run CUDA tensors, except where torch has a CUDA face (C++) already."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    for op, launcher in FACES.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"worldenv::{op}", "CUDA"):
            torch.library.impl(f"worldenv::{op}", "CUDA")(launcher)
            RUNS.add(op)


def _where_its_tensors_are(launcher: Callable) -> Callable:
    # Triton launches on the current device, which need not be the one of the tensors.
    @wraps(launcher)
    def run(*arguments):
        with torch.cuda.device_of(next(x for x in arguments if isinstance(x, torch.Tensor))):
            return launcher(*arguments)

    return run
