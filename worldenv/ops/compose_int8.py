"""Op `compose_int8`: the end of the composer in 8 bits, from its last features to the patches of the frames."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.compose import SUB, compose_reference
from worldenv.ops.packed import FOUR, Layer, Packed, check_layer, multiply, quantise
from worldenv.ops.patchify import PATCH


def compose_int8_reference(
    x: Tensor,
    weights: Tensor,
    affine: Tensor,
    step: float,
    zero: int,
    bias: Tensor,
    pictures: Tensor,
    plate: Tensor,
    smallest_share: float,
    smallest_correction: float,
) -> Tensor:
    """The meaning of `compose_int8`, in plain PyTorch."""
    raw = multiply(quantise(F.silu(x), step, zero), Packed(weights, affine), len(bias), zero)
    return compose_reference(raw, bias, pictures, plate, smallest_share, smallest_correction)


def compose_int8(
    x: Tensor,  # [B, h, w, C] float32, C a multiple of 4
    packed: Packed,  # of a linear layer from C to (3 + S) * K * 4
    step: float,  # of the grid of its input
    zero: int,
    bias: Tensor,  # [(3 + S) * K * 4] float32, likewise the next five: as `compose` takes them
    pictures: Tensor,  # [B, h, w, S - 1, 12] uint8
    plate: Tensor,  # [h, w, 12] float32
    smallest_share: float,
    smallest_correction: float,
) -> Tensor:  # [B, h, w, K, 12] float32, patches
    """compose(linear(silu(x)), ..), the linear layer in 8 bits; its 272 numbers a cell never leave the cache.

    No gradient. Raises ValueError if a shape, dtype or device is another one, or the grid is none.
    """
    _check(x, Layer(packed, step, zero), bias, pictures, plate)
    s = pictures.shape[3] + 1
    if not 0 <= smallest_share < 1 / s or not smallest_correction >= 0:
        raise ValueError(
            f"smallest_share is {smallest_share} and smallest_correction {smallest_correction}; they should lie in "
            f"[0, 1 / {s}) and be at least 0"
        )
    face = compose_int8_reference if ops.BACKEND == "reference" else torch.ops.worldenv.compose_int8
    return face(
        x.detach(), *packed, step, zero, bias.detach(), pictures, plate.detach(), smallest_share, smallest_correction
    )


def _check(x: Tensor, layer: Layer, bias: Tensor, pictures: Tensor, plate: Tensor) -> None:
    if x.ndim != 4 or x.shape[3] % FOUR:
        raise ValueError(f"x has shape {list(x.shape)}; it should be [B, h, w, C], C a multiple of {FOUR}")
    b, h, w, channels = x.shape
    if pictures.ndim != 5 or pictures.dtype != torch.uint8 or pictures.device != x.device:
        raise ValueError(
            f"pictures is {pictures.dtype} {list(pictures.shape)} on {pictures.device}; it should be torch.uint8 "
            f"[B, h, w, S - 1, 12] on {x.device}"
        )
    s = pictures.shape[3] + 1
    if tuple(pictures.shape) != (b, h, w, s - 1, PATCH):
        raise ValueError(f"pictures has shape {list(pictures.shape)}; it should be {[b, h, w, s - 1, PATCH]}")
    if bias.ndim != 1 or not len(bias) or len(bias) % ((3 + s) * SUB):
        raise ValueError(f"bias has shape {list(bias.shape)}; it should have {(3 + s) * SUB} numbers for every frame")
    wanted = {"x": (x, x.shape), "bias": (bias, bias.shape), "plate": (plate, (h, w, PATCH))}
    ops.check_tensors(wanted | check_layer("layer", layer, channels, len(bias), 1))


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::compose_int8", "CompositeExplicitAutograd")(compose_int8_reference)


@torch.library.register_fake("worldenv::compose_int8")
def _(x, weights, affine, step, zero, bias, pictures, plate, smallest_share, smallest_correction):
    frames = len(bias) // ((4 + pictures.shape[3]) * SUB)
    return x.new_empty(*x.shape[:3], frames, PATCH)
