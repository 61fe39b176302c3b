"""A layer in 8 bits as the compiled ops read it: 16 outputs side by side, four inputs of each together."""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LANES, FOUR = 16, 4
SMALLEST = torch.finfo(torch.float32).tiny


Grid = tuple[float, int]  # step and zero of 256 levels
NO_GRID = (0.0, 0)


class Packed(NamedTuple):
    """output = (sum of level * byte) * affine[0] + affine[1]; both are filled up with zeros to whole 16 outputs."""

    weights: Tensor  # [ceil(N / 16), rows, columns * I / 4, 16, 4] int8
    affine: Tensor  # [2, ceil(N / 16) * 16] float32


class Layer(NamedTuple):
    """A packed layer and the grid that its input is on."""

    packed: Packed
    step: float
    zero: int


def check_grid(step: float, zero: int) -> None:
    if not SMALLEST <= step < inf or not 0 <= zero <= 255:
        raise ValueError(f"step is {step} and zero {zero}; they should be positive and in [0, 255]")


def check_layer(
    name: str, layer: Layer, inputs: int, outputs: int, rows: int
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Raise ValueError unless the layer has these sizes, an odd window of `rows` and a grid; for `ops.check_tensors`:
    what else should be right."""
    check_grid(layer.step, layer.zero)
    (weights, affine), blocks = layer.packed, -(-outputs // LANES)
    shape = (blocks, rows, rows * -(-inputs // FOUR), LANES, FOUR)
    if weights.dtype != torch.int8 or tuple(weights.shape) != shape or rows % 2 == 0:
        raise ValueError(f"{name} has weights {weights.dtype} {list(weights.shape)}; wanted: torch.int8 {list(shape)}")
    return {f"{name}.packed.affine": (affine, (2, blocks * LANES))}


def quantise(x: Tensor, step: float, zero: int) -> Tensor:  # float32 -> uint8
    """clamp(round(x / step) + zero, 0, 255), in plain PyTorch; NaN becomes the level of 0."""
    return (x * (1 / step)).round().add(zero).nan_to_num(zero).clamp(0, 255).to(torch.uint8)


def pack(
    levels: Tensor,  # [N, I] or [N, I, rows, columns] int8
    factor: Tensor,  # [N], of an output
    summand: Tensor,  # [N]
) -> Packed:
    """Lay a linear layer or a convolution out for `multiply`; where I is no multiple of 4, zeros are added."""
    window = levels if levels.ndim == 4 else levels[..., None, None]
    window = F.pad(window.permute(0, 2, 3, 1), (0, -window.shape[1] % FOUR))
    n = len(window)
    window = F.pad(window.flatten(2), (0, 0, 0, 0, 0, -n % LANES)).unflatten(2, (-1, FOUR)).unflatten(0, (-1, LANES))
    affine = F.pad(torch.stack([factor, summand]).float(), (0, -n % LANES))
    return Packed(window.permute(0, 2, 3, 1, 4).contiguous(), affine.contiguous())


def multiply(
    x: Tensor,  # [B, H, W, I] uint8, I a multiple of 4
    packed: Packed,
    outputs: int,  # N
    zero: int,  # the level of 0, beyond the border
    stride: int = 1,
) -> Tensor:  # [B, ceil(H / stride), ceil(W / stride), N] float32
    """The convolution (with a border) or linear layer of packed weights in plain PyTorch, exactly."""
    blocks, rows, run, _, _ = packed.weights.shape
    window = packed.weights.permute(0, 3, 1, 2, 4).reshape(blocks * LANES, rows, -1, x.shape[3]).permute(0, 3, 1, 2)
    border = (rows // 2, rows // 2)
    image = F.pad(x.permute(0, 3, 1, 2).double(), 2 * border, value=zero)
    product = F.conv2d(image, window.double(), stride=stride)[:, :outputs].permute(0, 2, 3, 1).float()
    return product * packed.affine[0, :outputs] + packed.affine[1, :outputs]
