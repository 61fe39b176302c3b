"""Policies that are a Laplace distribution: what they draw, what they record, what they are trained by."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Laplace

from worldenv.interfaces.observation import Key
from worldenv.interfaces.policy import Policy
from worldenv.policy.laplace import LaplacePolicy

MU, SCALE = 0.3, 0.05


class Two(LaplacePolicy):
    """One number of a picture, and a distribution that hears of it."""

    chunk, views = 2, ("agentview",)

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.mean = nn.Parameter(torch.full((2, 7), MU, dtype=dtype))
        self.beta = nn.Parameter(torch.full((2, 7), math.log(SCALE), dtype=dtype))
        self.looks = 0

    def read(self, texts):
        return torch.arange(len(texts))

    def see(self, seen, read):
        self.looks += 1
        return seen.frames.float().mean((1, 2, 3, 4))[:, None] + read[seen.text][:, None]

    def heads(self, feature, proprio):
        return self.mean.expand(len(feature), 2, 7), self.beta.expand(len(feature), 2, 7)

    def trainable(self):
        return [self.mean, self.beta]


def key(count, chunk=0):
    return Key(5, torch.arange(count), torch.full((count,), chunk))


@pytest.fixture
def moment(tiny):
    starts, policy = tiny.starts(6), Two()
    return policy, starts.seen, policy.read(starts.texts)


def test_class_of_two_methods_is_a_policy():
    assert isinstance(Two(), Policy)
    for use in (lambda: LaplacePolicy().see(None, None), lambda: LaplacePolicy().heads(None, None)):
        with pytest.raises(NotImplementedError):
            use()


def test_draws_follow_the_laplace_distribution(tiny):
    seen, policy = tiny.starts(1, size=8).seen, Two()
    many = seen.each(lambda tensor: tensor.expand(15_000, *tensor.shape[1:]))
    draw = policy.act(many, policy.read(["a"]), key(15_000), True).action.flatten().sort().values.double()
    level = (torch.arange(len(draw)) + 0.5) / len(draw)
    distance = (Laplace(MU, SCALE).cdf(draw) - level).abs().max()
    assert distance < 1.95 / math.sqrt(len(draw))  # Kolmogorov-Smirnov at 0.1 %
    assert draw.median().item() == pytest.approx(MU, abs=1e-3)
    assert (draw - MU).abs().mean().item() == pytest.approx(SCALE, rel=0.02)


def test_mean_is_acted_without_exploration_and_the_key_decides_with_it(moment):
    policy, seen, read = moment
    assert (policy.act(seen, read, key(6), False).action == MU).all()
    one, again, later = (policy.act(seen, read, key(6, chunk), True).action for chunk in (0, 0, 1))
    assert torch.equal(one, again) and (one != later).all() and (one[0] != one[1]).all()


def test_log_probability_is_that_of_the_chunk_and_comes_again_from_the_record(moment):
    policy, seen, read = moment
    decision = policy.act(seen, read, key(6), True)
    expected = Laplace(MU, SCALE).log_prob(decision.action).sum((1, 2))
    torch.testing.assert_close(decision.log_prob, expected, rtol=1e-5, atol=1e-4)
    again = policy.log_prob(decision.record, decision.action)
    torch.testing.assert_close(again, decision.log_prob, rtol=1e-5, atol=1e-4)
    assert again.requires_grad and not decision.log_prob.requires_grad and not decision.action.requires_grad


def test_record_is_what_was_seen_and_an_update_does_not_look_again(moment):
    policy, seen, read = moment
    record = policy.act(seen, read, key(6), True).record
    assert torch.equal(record.feature, policy.see(seen, read)) and torch.equal(record.proprio, seen.proprio)
    assert set(vars(record)) == {"feature", "proprio"}
    looks, action = policy.looks, torch.zeros(6, 2, 7)
    policy.log_prob(record, action)
    policy.ppo_loss(record, action, torch.zeros(6), torch.ones(6), 0.2)
    assert policy.looks == looks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_heads_of_half_precision_act_and_learn(tiny, dtype):
    policy, seen = Two(dtype), tiny.starts(6).seen
    decision = policy.act(seen, policy.read("abc"), key(6), True)
    assert decision.action.dtype == decision.log_prob.dtype == torch.float32
    given = decision.record, decision.action
    torch.testing.assert_close(policy.log_prob(*given), decision.log_prob, rtol=1e-5, atol=1e-4)
    loss, share = policy.ppo_loss(*given, decision.log_prob, torch.linspace(-1, 1, 6), 0.2)
    loss.backward()
    assert share == 0 and policy.mean.grad.dtype == dtype and policy.mean.grad.any() and policy.beta.grad.any()
