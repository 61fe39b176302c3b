"""Op `conv_int8`: a convolution or linear layer in 8 bits, with what comes before and after it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.packed import FOUR, NO_GRID, Grid, Layer, Packed, check_grid, check_layer, multiply, quantise


def conv_int8_reference(
    x: Tensor,
    weights: Tensor,
    affine: Tensor,
    step: float,
    zero: int,
    outputs: int,
    stride: int,
    relu: bool,
    onto: Tensor | None,
    to_step: float,
    to_zero: int,
) -> Tensor:  # [B, ceil(H / stride), ceil(W / stride), N] float32, or uint8 if to_step > 0
    """The meaning of `conv_int8`, in plain PyTorch; images are channels last by shape."""
    x = x if x.dtype == torch.uint8 else quantise(x, step, zero)
    y = multiply(x, Packed(weights, affine), outputs, zero, stride)
    y = F.relu(y) if relu else y
    y = y if onto is None else y + onto
    return quantise(y, to_step, to_zero) if to_step else y


def conv_int8(
    x: Tensor,  # [B, H, W, I] float32, or uint8 if it is on the layer's grid already
    layer: Layer,  # from I to N, its window odd and square
    outputs: int,  # N
    stride: int = 1,
    relu: bool = False,
    onto: Tensor | None = None,  # [B, H', W', N] float32, to be added
    to: Grid = NO_GRID,  # step > 0: the result on these levels
) -> Tensor:  # [B, H', W', N] float32, or uint8 on `to`; H' = ceil(H / stride), W' likewise
    """y = onto + relu(conv(quantise(x))), with a border of zeros half as wide as the window.

    A linear layer is one with a window of 1. Products of bytes are summed exactly, so an image gives the same in any
    batch. No gradient.

    Raises ValueError if a shape, dtype or device is another one, the stride is below 1, or a grid is none.
    """
    _check(x, layer, outputs, stride, onto, to)
    x = F.pad(x, (0, -x.shape[3] % FOUR)) if x.shape[3] % FOUR else x
    onto = None if onto is None else onto.detach().contiguous()
    face = conv_int8_reference if ops.BACKEND == "reference" else torch.ops.worldenv.conv_int8
    return face(x.detach().contiguous(), *layer.packed, *layer[1:], outputs, stride, relu, onto, *to)


def _check(x: Tensor, layer: Layer, outputs: int, stride: int, onto: Tensor | None, to: Grid) -> None:
    if x.ndim != 4 or x.dtype not in (torch.float32, torch.uint8) or not x.shape[3]:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it should be float32 or uint8 [B, H, W, I]")
    if stride < 1 or outputs < 1:
        raise ValueError(f"stride is {stride} and outputs {outputs}; they should be positive")
    if to[0]:
        check_grid(*to)
    b, height, width, inputs = x.shape
    weights, affine = layer.packed
    wanted = check_layer("layer", layer, inputs, outputs, weights.shape[1] if weights.ndim == 5 else 1)
    if onto is not None:
        wanted["onto"] = onto, (b, -(-height // stride), -(-width // stride), outputs)
    ops.check_tensors(wanted)
    if x.device != affine.device:
        raise ValueError(f"x is on {x.device}; it should be on {affine.device}, as the layer is")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::conv_int8", "CompositeExplicitAutograd")(conv_int8_reference)


@torch.library.register_fake("worldenv::conv_int8")
def _(x, weights, affine, step, zero, outputs, stride, relu, onto, to_step, to_zero):
    shape = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride), outputs)
    return x.new_empty(shape, dtype=torch.uint8 if to_step else torch.float32)
