"""Pictures as OpenVLA-OFT looks at them: resized, cropped and normalised, on the device, in a few matrix products.

The authors' evaluation does so with TensorFlow: `resize` by lanczos3 with antialiasing, `crop_and_resize`, and a
rounding to 8 bits after each. Before, it writes each picture as JPEG and reads it again, which is left out here: a
grey level or two.
"""

import functools
import math

import torch
from torch import Tensor

from worldenv.data.orientation import STEPS
from worldenv.policy.openvla_oft.config import OpenVLAConventions

CUBIC = -0.5  # slope of the bicubic kernel at 1, as Pillow and torch have it where they antialias


def prepared(
    frames: Tensor,  # [B, V, H, W, 3] uint8, upright
    size: int,  # S
    conventions: OpenVLAConventions,
    mean: Tensor,  # [2, 3] float32, of DINOv2's and of SigLIP's pictures
    std: Tensor,  # [2, 3] float32
) -> Tensor:  # [B, V, 2, 3, S, S] float32
    """The pictures for both towers."""
    rows, columns = STEPS[conventions.orientation]
    turned = [axis for axis, step in ((2, rows), (3, columns)) if step < 0]
    x = frames.flip(turned).permute(0, 1, 4, 2, 3).float()  # [B, V, 3, H, W], 0 .. 255
    x = resized(x, size, conventions.resize).round().clamp(0, 255)  # to even, as TensorFlow's
    if conventions.crop < 1:
        x = _sampled(x / 255, _crop(size, conventions.crop, x.device), _crop(size, conventions.crop, x.device))
        x = (x.clamp(0, 1) * 255.5).floor().clamp(max=255)  # as convert_image_dtype rounds
    x = (x / 255)[:, :, None]
    return (x - mean[:, :, None, None]) / std[:, :, None, None]


def resized(x: Tensor, size: int, kernel: str = "lanczos") -> Tensor:  # [..., H, W] -> [..., S, S] float32
    """Every picture at the size of a square, whatever its shape, antialiased."""
    if x.shape[-2:] == (size, size):
        return x
    height, width = x.shape[-2:]
    return _sampled(x, _resize(kernel, height, size, x.device), _resize(kernel, width, size, x.device))


def _sampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:  # [..., H, W], [S, H], [S, W] -> [..., S, S]
    return rows @ x @ columns.T


def _lanczos(x: Tensor) -> Tensor:  # of three lobes
    return torch.sinc(x) * torch.sinc(x / 3) * (x.abs() <= 3)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


KERNELS = {"lanczos": _lanczos, "bicubic": _bicubic}


@functools.cache
def _resize(kernel: str, source: int, target: int, device: torch.device) -> Tensor:  # [target, source]
    """The weight of each source pixel in each target pixel; where a picture is made smaller the kernel is wider."""
    step = source / target
    middle = (torch.arange(target, dtype=torch.float64) + 0.5) * step
    away = (torch.arange(source, dtype=torch.float64) + 0.5 - middle[:, None]) / max(step, 1.0)
    weight = KERNELS[kernel](away)
    return _kept(weight / weight.sum(1, keepdim=True), device)


@functools.cache
def _crop(size: int, share: float, device: torch.device) -> Tensor:  # [size, size]
    """The middle part of a side, of `share` of the area, drawn out to the whole side; corners stay corners."""
    side = math.sqrt(share)
    place = (size - 1) * ((1 - side) / 2 + side * torch.arange(size, dtype=torch.float64) / max(size - 1, 1))
    away = (torch.arange(size, dtype=torch.float64) - place[:, None]).abs()
    return _kept((1 - away).clamp(min=0), device)  # bilinear: the two pixels that are nearer than one


def _kept(matrix: Tensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it will be used outside of it, too
        return matrix.float().to(device)
