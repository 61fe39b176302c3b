"""From frames to what a vision tower takes: resized as Pillow does, on the frames' device, and normalised."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from worldenv.errors import UserError


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:  # Keys, a = -0.5
    x = x.abs()
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((-0.5 * x + 2.5) * x - 4) * x + 2) * (x < 2))


def _lanczos(x: Tensor) -> Tensor:
    return torch.sinc(x) * torch.sinc(x / 3) * (x.abs() < 3)


BITS = 22  # of Pillow's weights
FILTERS: dict[int, Callable[[Tensor], Tensor]] = {1: _lanczos, 2: _bilinear, 3: _bicubic}  # Pillow's numbers


@lru_cache(maxsize=64)
def resampling(old: int, new: int, number: int, device: torch.device) -> Tensor:  # [new, old] float64
    """The weights of Pillow's antialiased resampling along one axis."""
    scale = old / new
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    away = (torch.arange(old, dtype=torch.float64) + 0.5 - centre[:, None]) / max(scale, 1)
    weight = FILTERS[number](away)
    weight = weight / weight.sum(1, keepdim=True) * 2**BITS
    return ((weight.abs() + 0.5).floor() * weight.sign() / 2**BITS).to(device)


def resized(
    frames: Tensor,  # [N, H, W, 3] uint8
    size: tuple[int, int],
    number: int,  # of the filter
) -> Tensor:  # [N, 3, *size] float32, whole numbers 0 .. 255
    """What Pillow (13) computes, to the last bit, in float64, where its sums are exact.

    One axis after the other, each rounded to bytes: rows first, but for pictures that shrink most in height.
    """
    x = frames.permute(0, 3, 1, 2).double()
    grows = [size[i] / x.shape[2 + i] for i in (0, 1)]
    for axis in (2, 3) if grows[0] < min(1, grows[1]) else (3, 2):
        new = size[axis - 2]
        if x.shape[axis] != new:
            weight = resampling(x.shape[axis], new, number, x.device)
            x = x @ weight.T if axis == 3 else weight @ x
            x = (x + 0.5).floor().clamp(0, 255)
    return x.float()


@dataclass(frozen=True)
class Look:
    """What a model's preprocessor_config.json says of pictures."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: int
    document: Mapping[str, Any]  # the rest, which differs between families

    @classmethod
    def of(cls, document: Mapping[str, Any], where: str) -> "Look":
        """Raises UserError for values that are no means, deviations or known filter."""
        mean, std = document.get("image_mean"), document.get("image_std")
        for name, value in (("image_mean", mean), ("image_std", std)):
            numbers = isinstance(value, list) and len(value) == 3 and all(isinstance(x, int | float) for x in value)
            if not numbers or (name == "image_std" and not all(value)):
                raise UserError(f"{where}: {name} is {value!r}; it should be three numbers: download the file again")
        number = document.get("resample", 3)
        if number not in FILTERS:
            raise UserError(f"{where}: resample is {number!r}; known are {', '.join(map(str, FILTERS))}")
        return cls(tuple(mean), tuple(std), number, document)

    def __call__(self, frames: Tensor, size: tuple[int, int]) -> Tensor:  # [N, 3, *size] float32
        """Frames [N, H, W, 3] uint8 as the vision tower takes them."""
        mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (self.mean, self.std))
        return (resized(frames, size, self.filter) / 255 - mean) / std


def whole_patches(
    height: int,
    width: int,
    step: int,  # both sides become multiples of it
    least: int,  # pixels
    most: int,  # pixels
) -> tuple[int, int]:
    """The size in which Qwen-VL looks at a picture: nearly its shape, and between `least` and `most` pixels.

    Qwen2-VL, arXiv 2409.12191, section 2.1.
    """
    size = [max(step, round(side / step) * step) for side in (height, width)]
    if size[0] * size[1] > most:
        shrink = math.sqrt(height * width / most)
        size = [max(step, math.floor(side / shrink / step) * step) for side in (height, width)]
    elif size[0] * size[1] < least:
        grow = math.sqrt(least / (height * width))
        size = [math.ceil(side * grow / step) * step for side in (height, width)]
    return size[0], size[1]


def patches(
    pixels: Tensor,  # [N, 3, H, W]
    side: int,  # of a patch
    merge: int,  # patches along each side of what becomes one token
    times: int,  # frames of one patch: a still frame is repeated
) -> Tensor:  # [N * (H / side) * (W / side), 3 * times * side ** 2]
    """Patches in the order in which Qwen-VL reads them: those of one token next to each other."""
    n, c, height, width = pixels.shape
    rows, columns = height // side // merge, width // side // merge
    x = pixels.view(n, c, rows, merge, side, columns, merge, side).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], times, side, side)
    return x.reshape(-1, c * times * side * side)
