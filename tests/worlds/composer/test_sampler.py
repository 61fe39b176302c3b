import pytest
import torch

from worldenv.worlds.composer.sampler import STUDENT_LEVELS, TEACHER_LEVELS, sample


class Oracle:
    """Knows the clean frames, whatever it is shown."""

    def __init__(self, clean):
        self.clean, self.levels = clean, []

    def denoise(self, noisy, t, seen):
        self.levels.append(t[0].item())
        return self.clean


class Linear:
    """The best guess of clean frames that are Gaussian with mean `seen` and variance v: linear in the noisy ones."""

    variance = 0.09

    def denoise(self, noisy, t, seen):
        t = t.view(-1, 1, 1, 1, 1)
        gain = (1 - t) * self.variance / ((1 - t) ** 2 * self.variance + t**2)
        return seen + gain * (noisy - (1 - t) * seen)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.75, 0.5, 0.25), (1.0, 0.1)])
def test_oracle_gives_its_clean_frames_in_one_pass_a_level(levels):
    clean, noise = torch.rand(3, 4, 3, 8, 8) * 2 - 1, torch.randn(3, 4, 3, 8, 8)
    oracle = Oracle(clean)
    assert torch.equal(sample(oracle, None, noise, levels), clean)
    assert oracle.levels == pytest.approx(levels)


def test_four_steps_follow_the_euler_path_of_the_flow():
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(7, 1, 3, 4, 4, generator=generator, dtype=torch.float64)
    mean, levels, model = torch.tensor(0.1, dtype=torch.float64), (1.0, 0.75, 0.5, 0.25), Linear()
    x = noise
    for t, t_next in zip(levels, [0.75, 0.5, 0.25, 0.0], strict=True):
        clean = model.denoise(x, torch.full((7,), t, dtype=torch.float64), mean)
        x = x + (t_next - t) * (x - clean) / t
    torch.testing.assert_close(sample(model, mean, noise, levels), x, rtol=1e-6, atol=1e-6)


def test_many_steps_reach_the_gaussian_that_the_flow_leads_to():
    noise = torch.randn(40_000, 1, 3, 1, 1, generator=torch.Generator().manual_seed(6))
    frames = sample(Linear(), torch.tensor(0.1), noise, tuple((1 - torch.arange(64) / 64).tolist()))
    assert frames.mean().item() == pytest.approx(0.1, abs=0.01)
    assert frames.std().item() == pytest.approx(0.3, abs=0.015)


def test_levels_of_teacher_and_student_fall_from_one():
    for levels in (TEACHER_LEVELS, STUDENT_LEVELS):
        assert levels[0] == 1.0 and list(levels) == sorted(set(levels), reverse=True) and levels[-1] > 0
