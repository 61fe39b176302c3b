import pytest
import torch

from worldenv.kernels.denoise_step import denoise_step
from worldenv.ops.denoise_step import denoise_step_reference


@pytest.mark.parametrize("shape", [(1, 1), (3, 7, 9), (2, 4, 16, 17), (1, 1025)])
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.0), (1.0, 0.5), (0.7, 0.3)])
def test_face_equals_the_reference(draw, assert_same, dtype, shape, t, t_next):
    noisy, velocity = draw(2, *shape, dtype=dtype)
    episode = torch.arange(shape[0], device=noisy.device) + 2**33
    arguments = (noisy, velocity, t, t_next, 2**40 + 1, episode, episode - 2**33, 1)
    assert_same(denoise_step(*arguments), denoise_step_reference(*arguments))


def test_noise_is_that_of_the_episode_whatever_the_batch(draw):
    noisy, velocity = draw(2, 5, 100)
    episode = torch.arange(5, device=noisy.device) * 1000
    together = denoise_step(noisy, velocity, 1.0, 0.5, 3, episode, episode, 1)
    alone = denoise_step(noisy[3:4], velocity[3:4], 1.0, 0.5, 3, episode[3:4], episode[3:4], 1)
    assert torch.equal(alone[0], together[3])


def test_no_episode_gives_nothing(draw):
    none = torch.zeros(0, dtype=torch.int64)
    assert denoise_step(draw(0, 3), draw(0, 3), 1.0, 0.5, 0, none, none, 0).shape == (0, 3)
