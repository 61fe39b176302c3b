"""Op `quantise`: numbers on a grid of 256 levels, as convolutions in 8 bits read them."""

import torch
from torch import Tensor

from worldenv import ops


def quantise_reference(x: Tensor, step: float, zero: int) -> Tensor:
    """The meaning of `quantise`, in plain PyTorch."""
    return (x * (1 / step)).round().add(zero).nan_to_num(zero).clamp(0, 255).to(torch.uint8)


def quantise(
    x: Tensor,  # [..., D] float32; [B, C, H, W] is read and written channels last
    step: float,  # > 0, between two levels
    zero: int,  # in [0, 255], the level of 0
) -> Tensor:  # uint8, shaped as x
    """clamp(round(x / step) + zero, 0, 255); NaN becomes the level of 0. No gradient.

    Raises ValueError if x is not float32, or step and zero are out of range.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype}; it should be torch.float32: pass x.float()")
    check_grid(step, zero)
    face = quantise_reference if ops.BACKEND == "reference" else torch.ops.worldenv.quantise
    if x.ndim != 4:
        return face(x.detach().contiguous(), step, zero)
    return face(x.detach().permute(0, 2, 3, 1).contiguous(), step, zero).permute(0, 3, 1, 2)


def check_grid(step: float, zero: int) -> None:
    if not step > 0 or not 0 <= zero <= 255:
        raise ValueError(f"step is {step} and zero {zero}; they should be positive and in [0, 255]")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::quantise", "CompositeExplicitAutograd")(quantise_reference)


@torch.library.register_fake("worldenv::quantise")
def _(x, step, zero):
    return torch.empty_like(x, dtype=torch.uint8)
