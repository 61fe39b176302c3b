import pytest
import torch

from worldenv.kernels.laplace_chunk import laplace_chunk
from worldenv.ops.laplace_chunk import laplace_chunk_reference


@pytest.mark.parametrize(("b", "k", "a"), [(1, 1, 1), (5, 4, 7), (70, 8, 7), (3, 30, 9)])
@pytest.mark.parametrize("explore", [True, False])
def test_face_equals_the_reference(draw, device, b, k, a, explore):
    episode = torch.arange(b, device=device) * 2**30
    arguments = (draw(b, k, a), draw(b, k, a) / 4 - 2, 2**40 + 7, episode, episode % 100, explore)
    (action, log_prob), expected = laplace_chunk(*arguments), laplace_chunk_reference(*arguments)
    torch.testing.assert_close(action, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_prob, expected[1], rtol=1e-5, atol=1e-5 * k * a)


def test_episode_draws_the_same_alone_and_in_a_batch(draw, device):
    mu, beta, episode = draw(40, 4, 7), draw(40, 4, 7), torch.arange(40, device=device)
    together = laplace_chunk(mu, beta, 0, episode, episode, True)
    alone = laplace_chunk(mu[37:38], beta[37:38], 0, episode[37:38], episode[37:38], True)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[37])


def test_no_chunk_gives_nothing_and_one_that_is_too_long_is_refused(draw, device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert laplace_chunk(draw(0, 4, 7), draw(0, 4, 7), 0, none, none, True)[1].shape == (0,)
    with pytest.raises(ValueError, match="mu has 4097 numbers a chunk; .* at most 4096"):
        laplace_chunk(draw(1, 1, 4097), draw(1, 1, 4097), 0, none, none, True)
