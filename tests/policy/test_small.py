import math

import pytest
import torch
from torch.distributions import Laplace

from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.policy.small import Policy, PolicyConfig, laplace_sample


def test_samples_follow_the_laplace_distribution():
    generator = torch.Generator().manual_seed(1)
    mu, beta = torch.full((200_000,), 0.3), torch.full((200_000,), math.log(0.05))
    draw = laplace_sample(mu, beta, torch.rand(200_000, generator=generator)).sort().values.double()
    level = (torch.arange(200_000) + 0.5) / 200_000
    distance = (Laplace(0.3, 0.05).cdf(draw) - level).abs().max()
    assert distance < 1.95 / math.sqrt(200_000)  # Kolmogorov-Smirnov at 0.1 %
    assert draw.median().item() == pytest.approx(0.3, abs=1e-3)
    assert (draw - 0.3).abs().mean().item() == pytest.approx(0.05, rel=0.02)


def test_sampling_inverts_the_distribution_function():
    uniform = torch.tensor([0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 2**-24])
    draw = laplace_sample(torch.zeros(6), torch.zeros(6), uniform)
    assert torch.isfinite(draw).all() and draw[3] == 0
    torch.testing.assert_close(draw[1:5], Laplace(0.0, 1.0).icdf(uniform[1:5]), rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("push", [-1e4, 0.0, 1e4])
def test_scale_stays_within_its_bounds(tiny, push):
    floors = (0.02, 0.03, 0.04, 0.1, 0.1, 0.1, 0.2)
    policy = Policy(PolicyConfig(width=64, channels=16, blocks=1, scale_low=floors, scale_high=0.3))
    starts, low, high = tiny.starts(5), torch.tensor(floors), torch.full((7,), 0.3)
    torch.nn.init.constant_(policy.scale_head[-1].bias, push)
    scale = policy(starts.frame, starts.proprio, starts.tokens)[1].exp()
    assert (scale >= low * (1 - 1e-5)).all() and (scale <= high * (1 + 1e-5)).all()
    edge = {-1e4: low, 1e4: high}.get(push)
    if edge is not None:
        torch.testing.assert_close(scale, edge.expand_as(scale))


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_chunk_has_one_mean_and_one_scale_for_each_action(tiny, chunk):
    starts = tiny.starts(3)
    mu, beta = tiny.policy(chunk=chunk)(starts.frame, starts.proprio, starts.tokens)
    assert mu.shape == beta.shape == (3, chunk, 7)


def test_every_input_moves_the_action(tiny):
    policy, starts = tiny.policy(), tiny.starts(2)
    base = policy(starts.frame, starts.proprio, starts.tokens)[0]
    assert not torch.allclose(base, policy(255 - starts.frame, starts.proprio, starts.tokens)[0])
    assert not torch.allclose(base, policy(starts.frame, starts.proprio + 0.05, starts.tokens)[0])
    assert not torch.allclose(base, policy(starts.frame, starts.proprio, starts.tokens.flip(0))[0])


def test_scale_likelihood_leaves_the_action_head_alone(tiny):
    policy, starts = tiny.policy(), tiny.starts(2)
    mu, beta = policy(starts.frame, starts.proprio, starts.tokens)
    laplace_log_prob(torch.zeros_like(mu), mu.detach(), beta).sum().backward()
    assert all(p.grad is None for p in policy.action_head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in policy.scale_head.parameters())


@pytest.mark.parametrize(
    "bad",
    [{"chunk": 0}, {"scale_low": (0.0,) * 7}, {"scale_low": (0.1,) * 6}, {"scale_low": (0.5,) * 7, "scale_high": 0.5}],
)
def test_contradictory_configuration_is_refused(bad):
    with pytest.raises(ValueError, match="chunk .* must be >= 1, and scale_low .* seven numbers"):
        PolicyConfig(**bad)
