import pytest
import torch

from worldenv.kernels.ppo_loss import ppo_loss
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.ops.ppo_loss import ppo_loss_with_gradient_reference


def inputs(draw, b, k, a):
    """Chunks near what was done, of which some are clipped; some numbers are exactly the mean."""
    mu, beta = draw(b, k, a), draw(b, k, a) / 4
    action = mu + draw(b, k, a)
    action[:, 0, 0] = mu[:, 0, 0]
    return mu, beta, action, laplace_log_prob(action, mu, beta) + draw(b) / 4, draw(b)


@pytest.mark.parametrize(("b", "k", "a"), [(1, 1, 1), (5, 4, 7), (70, 8, 7), (3, 30, 9)])
def test_face_equals_the_reference(draw, b, k, a):
    arguments = (*inputs(draw, b, k, a), 0.2)
    for actual, expected in zip(ppo_loss(*arguments), ppo_loss_with_gradient_reference(*arguments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_chunks_are_clipped_on_both_sides_and_too_far_ones_have_no_gradient(draw):
    mu, beta, action, behaviour, advantage = inputs(draw, 6, 2, 3)
    exact = laplace_log_prob(action, mu, beta)
    behaviour = exact - torch.tensor([0.0, 1.0, 1.0, -1.0, -1.0, -30.0], device=mu.device)
    advantage = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, 1.0], device=mu.device)
    arguments = (mu, beta, action, behaviour, advantage, 0.2)
    for actual, expected in zip(ppo_loss(*arguments), ppo_loss_with_gradient_reference(*arguments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    passes = ppo_loss(*arguments)[3].flatten(1).any(1).tolist()
    assert passes == [True, False, True, True, False, False]


def test_number_that_is_not_finite_reaches_the_loss(draw):
    arguments = (*inputs(draw, 6, 2, 3), 0.2)
    arguments[0][3, 1, 1] = float("nan")
    loss, _, of_mu, _ = ppo_loss(*arguments)
    assert loss.isnan() and of_mu[2].isfinite().all()


def test_chunk_that_is_too_long_is_refused(draw):
    with pytest.raises(ValueError, match="mu has 8193 numbers a chunk; .* at most 8192"):
        ppo_loss(*inputs(draw, 1, 1, 8193), 0.2)
