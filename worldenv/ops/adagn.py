"""Op `adagn`: group normalisation, scaled and shifted by a condition, and an activation, in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}


def adagn_reference(
    x: Tensor,  # [B, C, H, W] float32
    groups: int,
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    scale: Tensor | None,  # [B, C]
    shift: Tensor | None,  # [B, C]
    activation: str,
    eps: float = 1e-5,
) -> Tensor:  # [B, C, H, W] float32
    """The meaning of `adagn`, in plain PyTorch; it has a gradient."""
    x = F.group_norm(x, groups, weight, bias, eps)
    if scale is not None:
        x = x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return ACTIVATIONS[activation](x)


def adagn(
    x: Tensor,  # [B, C, H, W] float32, channels last in memory (other layouts are copied)
    groups: int,  # divides C
    weight: Tensor,  # [C] float32
    bias: Tensor,  # [C] float32
    scale: Tensor | None = None,  # [B, C] float32
    shift: Tensor | None = None,  # [B, C] float32, given with scale
    activation: str = "none",  # none, relu or silu
    eps: float = 1e-5,
) -> Tensor:  # [B, C, H, W] float32, channels last
    """Adaptive group normalisation (Dhariwal & Nichol 2021, "AdaGN") and an activation.

        y = activation(group_norm(x) * (1 + scale) + shift)

    Without `scale` the plain group normalisation. Where a gradient is wanted, the reference is what runs.

    Raises ValueError if a shape, dtype or device is another one, or the activation is unknown.
    """
    _check(x, groups, weight, bias, scale, shift, activation)
    tensors = (x, weight, bias, scale, shift)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if ops.BACKEND == "reference" or wants_gradient:
        return adagn_reference(x, groups, weight, bias, scale, shift, activation, eps)
    rows = x.permute(0, 2, 3, 1).contiguous()
    y = torch.ops.worldenv.adagn(rows, groups, weight, bias, scale, shift, activation, eps)
    return y.permute(0, 3, 1, 2)


def _check(x, groups, weight, bias, scale, shift, activation) -> None:
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [B, C, H, W]")
    b, c = x.shape[:2]
    if groups < 1 or c % groups:
        raise ValueError(f"groups is {groups}; it should divide the {c} channels")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift are given together or not at all")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it should be one of {', '.join(ACTIVATIONS)}")
    wanted = {"x": (x, x.shape), "weight": (weight, (c,)), "bias": (bias, (c,))}
    if scale is not None:
        wanted |= {"scale": (scale, (b, c)), "shift": (shift, (b, c))}
    ops.check_tensors(wanted)


def _rows(rows: Tensor, *others) -> Tensor:  # [B, H, W, C] as the faces take it
    return adagn_reference(rows.permute(0, 3, 1, 2), *others).permute(0, 2, 3, 1)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::adagn", "CompositeExplicitAutograd")(_rows)


@torch.library.register_fake("worldenv::adagn")
def _(rows, *others):
    return torch.empty_like(rows)
