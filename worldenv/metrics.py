"""Success rates with their intervals, and the quality of imagined frames."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

T_QUANTILES_975 = (
    12.70620,
    4.30265,
    3.18245,
    2.77645,
    2.57058,
    2.44691,
    2.36462,
    2.30600,
    2.26216,
    2.22814,
    2.20099,
    2.17881,
    2.16037,
    2.14479,
    2.13145,
    2.11991,
    2.10982,
    2.10092,
    2.09302,
    2.08596,
    2.07961,
    2.07387,
    2.06866,
    2.06390,
    2.05954,
    2.05553,
    2.05183,
    2.04841,
    2.04523,
    2.04227,
)
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
FRAMES_AT_ONCE = 128


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927), which stays inside [0, 1] and is sound near its ends.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = successes / n

    Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes = {successes}, trials = {trials}: need trials >= 1 and 0 <= successes <= trials")
    rate = successes / trials
    scale = 1 + z**2 / trials
    centre = (rate + z**2 / (2 * trials)) / scale
    half = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / scale
    # The two ends are exact in the formula and not in floating point.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def difference_interval(
    successes_1: int, trials_1: int, successes_2: int, trials_2: int, z: float = 1.96
) -> tuple[float, float]:
    """Interval of the difference p1 - p2 of two independent success rates.

        low  = d - sqrt((p1 - l1)^2 + (u2 - p2)^2)
        high = d + sqrt((u1 - p1)^2 + (p2 - l2)^2),   d = p1 - p2, (l, u) = Wilson intervals

    The hybrid score interval without continuity correction: method 10 of R. G. Newcombe, "Interval estimation for the
    difference between independent proportions", Statistics in Medicine 17 (1998). Raises like `wilson_interval`.
    """
    low_1, high_1 = wilson_interval(successes_1, trials_1, z)
    low_2, high_2 = wilson_interval(successes_2, trials_2, z)
    rate_1, rate_2 = successes_1 / trials_1, successes_2 / trials_2
    difference = rate_1 - rate_2
    low = difference - math.hypot(rate_1 - low_1, high_2 - rate_2)
    high = difference + math.hypot(high_1 - rate_1, rate_2 - low_2)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few independent values (one per seed), by Student's t.

        mean -+ t(0.975, n - 1) s / sqrt(n)

    Raises ValueError for fewer than two values, of which one is not finite.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"values has {count} entries: an interval of the mean needs at least 2 (run more seeds)")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values = {list(values)}: every entry must be finite")
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _t_quantile(count - 1) * deviation / math.sqrt(count)
    return mean - half, mean + half


def _t_quantile(freedom: int) -> float:
    if freedom <= len(T_QUANTILES_975):
        return T_QUANTILES_975[freedom - 1]
    # Cornish-Fisher expansion around the normal quantile: 1e-6 off at 31 degrees of freedom, less beyond.
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


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


def frechet_distance(
    features_a: Tensor,  # [n, D]
    features_b: Tensor,  # [m, D]
) -> float:
    """Squared Frechet distance of the two Gaussians fitted to the features: FID on image, FVD on video features.

        |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

    In float64; the last trace is the sum of the roots of the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2).
    Raises ValueError for fewer than two rows, different widths or values that are not finite.
    """
    for name, feature in (("features_a", features_a), ("features_b", features_b)):
        if feature.ndim != 2 or feature.shape[0] < 2 or feature.shape[1] < 1:
            raise ValueError(f"{name} is {tuple(feature.shape)}: it should be [n >= 2, D >= 1]")
        if not torch.isfinite(feature).all():
            raise ValueError(f"{name} has values that are not finite")
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(f"features_a has width {features_a.shape[1]} and features_b {features_b.shape[1]}: make equal")
    features_a, features_b = features_a.double(), features_b.double()
    covariance_a, covariance_b = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (features_a, features_b))
    eigenvalue, eigenvector = torch.linalg.eigh(covariance_a)
    root_a = eigenvector * eigenvalue.clamp(min=0).sqrt() @ eigenvector.T
    roots = torch.linalg.eigvalsh(root_a @ covariance_b @ root_a).clamp(min=0).sqrt()
    squared_mean = (features_a.mean(0) - features_b.mean(0)).square().sum()
    return max(0.0, float(squared_mean + covariance_a.trace() + covariance_b.trace() - 2 * roots.sum()))
