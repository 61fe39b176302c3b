"""Metrics against published values, slow references and properties."""

import math

import pytest
import torch

from worldenv.evaluation.pictures import psnr, ssim
from worldenv.records.intervals import difference_interval, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval_has_the_known_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_mirrored_nested_and_narrows():
    low, high = wilson_interval(130, 500)
    assert low < 0.26 < high
    assert wilson_interval(370, 500) == pytest.approx((1 - high, 1 - low))
    wide = wilson_interval(13, 50)
    assert wide[0] < low and high < wide[1]
    assert wilson_interval(0, 7)[0] == 0 and wilson_interval(7, 7)[1] == 1


def test_wilson_ends_solve_the_score_equation():
    for end in wilson_interval(3, 17):
        assert abs(3 / 17 - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / 17))


# Newcombe (1998), table II, method 10.
@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0000),
    ],
)
def test_difference_interval_has_the_published_values(counts, low, high):
    assert difference_interval(*counts) == pytest.approx((low, high), abs=1e-4)
    assert difference_interval(*counts[2:], *counts[:2]) == pytest.approx((-high, -low), abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes <= trials"):
        wilson_interval(successes, trials)
    with pytest.raises(ValueError, match="successes <= trials"):
        difference_interval(1, 2, successes, trials)


def student_tail(quantile: float, freedom: int) -> float:
    """P(t > quantile) by integrating the density over x = sqrt(freedom) tan(angle)."""
    angle = torch.linspace(math.atan(quantile / math.sqrt(freedom)), math.pi / 2, 20001, dtype=torch.float64)
    area = torch.trapezoid(torch.cos(angle).clamp(min=0) ** (freedom - 1), angle)
    return float(area * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi))


@pytest.mark.parametrize("count", range(2, 41))
def test_mean_interval_uses_the_t_quantile_of_its_degrees_of_freedom(count):
    values = [1.0, -1.0] * (count // 2) + [0.0] * (count % 2)
    low, high = mean_interval(values)
    assert low == pytest.approx(-high)
    deviation = math.sqrt(2 * (count // 2) / (count - 1))
    assert student_tail(high * math.sqrt(count) / deviation, count - 1) == pytest.approx(0.025, abs=2e-6)


def test_mean_interval_of_five_seeds():
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((1.03676, 4.96324), abs=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval([0.3])
    with pytest.raises(ValueError, match="finite"):
        mean_interval([0.3, math.nan])


def noise_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_constant_error_is_known_and_per_image():
    true = torch.full((2, 3, 5, 7, 3), 100, dtype=torch.uint8)
    imagined = true.clone()
    imagined[1, 2] += 10
    value = psnr(imagined, true)
    assert value.shape == (2, 3)
    assert value[1, 2] == pytest.approx(20 * math.log10(25.5), abs=1e-9)
    assert torch.isinf(value).sum() == 5


def test_psnr_does_not_wrap_around_in_uint8():
    black, white = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4, 3), 255, dtype=torch.uint8)
    assert float(psnr(black, white)) == pytest.approx(0, abs=1e-9) and psnr(black, white).shape == ()


def ssim_by_windows(a: torch.Tensor, b: torch.Tensor) -> float:
    grid = [math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)]
    weight = torch.tensor([[x * y for x in grid] for y in grid], dtype=torch.float64)
    weight = (weight / weight.sum())[..., None]
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = (image[row : row + 11, column : column + 11].double() for image in (a, b))
            mean_x, mean_y = (weight * x).sum((0, 1)), (weight * y).sum((0, 1))
            variance_x, variance_y = (weight * (x - mean_x) ** 2).sum((0, 1)), (weight * (y - mean_y) ** 2).sum((0, 1))
            covariance = (weight * (x - mean_x) * (y - mean_y)).sum((0, 1))
            values.append(
                (2 * mean_x * mean_y + 6.5025)
                * (2 * covariance + 58.5225)
                / ((mean_x**2 + mean_y**2 + 6.5025) * (variance_x + variance_y + 58.5225))
            )
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("shape", [(11, 11), (13, 19)])
def test_ssim_equals_the_definition_window_by_window(shape):
    true = noise_image(2, *shape)
    imagined = (true.float() * 0.6 + noise_image(2, *shape, seed=1).float() * 0.3).byte()
    expected = [ssim_by_windows(imagined[i], true[i]) for i in range(2)]
    assert ssim(imagined, true).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_is_one_for_equal_images_symmetric_and_the_same_in_a_batch():
    true, imagined = noise_image(2, 70, 12, 12), noise_image(2, 70, 12, 12, seed=1)
    assert torch.allclose(ssim(true, true), torch.ones(2, 70, dtype=torch.float64))
    value = ssim(imagined, true)
    assert torch.allclose(value, ssim(true, imagined)) and value.max() < 0.3
    assert value[1, 69] == pytest.approx(float(ssim(imagined[1, 69], true[1, 69])))


def test_ssim_of_flat_images_is_the_luminance_term():
    dark, light = torch.full((12, 12, 3), 50, dtype=torch.uint8), torch.full((12, 12, 3), 100, dtype=torch.uint8)
    assert float(ssim(dark, light)) == pytest.approx((2 * 50 * 100 + 6.5025) / (50**2 + 100**2 + 6.5025), abs=1e-9)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_another_kind_are_refused(metric):
    image = noise_image(12, 12)
    with pytest.raises(ValueError, match="true is torch.float32"):
        metric(image, image.float())
    with pytest.raises(ValueError, match=r"imagined is torch.uint8 \(3, 12, 12\)"):
        metric(image.movedim(-1, 0), image)
    with pytest.raises(ValueError, match="they should be equal"):
        metric(image, noise_image(12, 13))


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(noise_image(10, 20), noise_image(10, 20))
