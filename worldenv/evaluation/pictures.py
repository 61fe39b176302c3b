"""The quality of imagined frames against true ones."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
FRAMES_AT_ONCE = 128


def psnr(
    imagined: Tensor,  # [..., H, W, 3] uint8
    true: Tensor,  # [..., H, W, 3] uint8
) -> Tensor:  # [...] float64, dB; inf where the two images are equal
    """Peak signal-to-noise ratio of each image.

        10 log10(255^2 / mean((imagined - true)^2))

    Raises ValueError unless both are uint8 images of one shape.
    """
    images = _paired_images(imagined, true)
    values = [
        20 * math.log10(255) - 10 * (a - b).square().mean(dim=(1, 2, 3)).log10() for a, b in zip(*images, strict=True)
    ]
    return torch.cat(values).reshape(imagined.shape[:-3])


def ssim(
    imagined: Tensor,  # [..., H, W, 3] uint8, H and W >= 11
    true: Tensor,  # [..., H, W, 3] uint8
) -> Tensor:  # [...] float64, <= 1
    """Structural similarity of each image: the mean over windows and colours (Wang et al. 2004).

        (2 m_a m_b + C1) (2 c_ab + C2) / ((m_a^2 + m_b^2 + C1) (v_a + v_b + C2))
        C1 = (0.01 * 255)^2,   C2 = (0.03 * 255)^2

    Means m, variances v and covariance c under an 11 x 11 Gaussian window of sigma 1.5, which never leaves the image.
    Computed in float64. Raises ValueError unless both are uint8 images of one shape and at least 11 x 11.
    """
    images = _paired_images(imagined, true)
    if min(imagined.shape[-3:-1]) < SSIM_WINDOW:
        raise ValueError(f"imagined has images of {tuple(imagined.shape[-3:-1])}: ssim needs at least 11 x 11 pixels")
    values = [_ssim_map(a, b).mean(dim=(1, 2, 3)) for a, b in zip(*images, strict=True)]
    return torch.cat(values).reshape(imagined.shape[:-3])


def _paired_images(
    imagined: Tensor, true: Tensor
) -> tuple[list[Tensor], list[Tensor]]:  # of [n, H, W, 3] float64, n <= FRAMES_AT_ONCE
    for name, image in (("imagined", imagined), ("true", true)):
        if image.dtype != torch.uint8 or image.ndim < 3 or image.shape[-1] != 3 or 0 in image.shape[-3:]:
            raise ValueError(f"{name} is {image.dtype} {tuple(image.shape)}: it should be uint8 [..., H, W, 3]")
    if imagined.shape != true.shape:
        raise ValueError(f"imagined is {tuple(imagined.shape)} and true is {tuple(true.shape)}: they should be equal")
    groups = [image.flatten(0, -4) if image.ndim > 3 else image[None] for image in (imagined, true)]
    return tuple([part.double() for part in group.split(FRAMES_AT_ONCE)] for group in groups)


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:  # [n, H, W, 3] float64 -> [3 n, H - 10, W - 10]
    offset = torch.arange(SSIM_WINDOW, device=a.device, dtype=a.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()

    def smooth(image: Tensor) -> Tensor:
        planes = image.movedim(-1, 1).flatten(0, 1)[:, None]
        rows = F.conv2d(planes, window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1)).unflatten(0, (-1, 3))[:, :, 0]

    mean_a, mean_b = smooth(a), smooth(b)
    variance_a, variance_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)
