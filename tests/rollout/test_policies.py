"""Somebody else's policy in the engine: any class that acts, in chunks of its own length, in a width of its own."""

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.interfaces.policy import Decision, Policy
from worldenv.nn.instruction import tokenize
from worldenv.policy.laplace import LaplacePolicy
from worldenv.rollout.replay import replay

SEED = 11


class Own(LaplacePolicy):
    """It reads words, in a width of its own, and acts in chunks of `k` actions."""

    views = ("agentview",)

    def __init__(self, k: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.chunk, self.words = k, nn.Embedding(64, 8, dtype=dtype)
        self.out = nn.Linear(8 + 7 + 3, 14 * k, dtype=dtype)

    def read(self, texts):
        return tokenize(texts)

    def see(self, seen, read):
        tokens = read[seen.text]
        assert tokens.dtype == torch.int64 and seen.frames.dtype == torch.uint8
        return torch.cat([self.words(tokens).mean(1), seen.frames[:, 0].float().mean((1, 2)) / 255], dim=1)

    def heads(self, feature, proprio):
        seen = torch.cat([feature, proprio], dim=1)
        mu, scale = self.out(seen.to(self.out.weight.dtype)).unflatten(1, (self.chunk, 14)).split(7, 2)
        return mu.tanh(), scale - 2

    def trainable(self):
        return list(self.out.parameters())


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8])
def test_any_policy_acts_in_chunks_of_its_own_length(tiny, chunk):
    engine, starts = tiny.engine(horizon=4 * chunk, policy=Own(chunk), capacity=3), tiny.starts(5)
    out = engine.run(starts, 2, SEED, stop=False, video=True)
    assert out.action.shape == (10, 4, chunk, 7) and out.reward.shape == (10, 4, chunk) and (out.chunks == 4).all()
    assert out.video.shape[1] == 4 * chunk + 1 and not out.broken.any()
    frames = replay(engine.world, starts, out.action[::2].flatten(1, 2), SEED)
    off = (frames[0, 4::4].int() - out.video[0, 4::4].int()).abs() > 1  # episode 0: the same number
    assert off.float().mean() < 0.001


def test_length_of_the_chunks_is_the_policys(tiny):
    assert tiny.engine(policy=tiny.policy(chunk=2)).chunk == 2
    assert tiny.engine(policy=Own(3)).chunk == 3 and tiny.engine(policy=Own(3)).horizon == 6  # of 16 actions


def test_memory_of_a_slot_says_what_the_chunks_cost(tiny):
    starts, frame = tiny.starts(2), 3 * 16 * 16
    in_passes, in_parts = (tiny.engine(policy=Own(k)).bytes_per_episode(starts)[0] for k in (8, 3))
    assert in_parts - in_passes == frame + 4 * 7 * 4


def test_policy_of_another_dtype_is_heard(tiny):
    out = tiny.engine(horizon=8, policy=Own(4, torch.bfloat16)).run(tiny.starts(3), 1, SEED, explore=False)
    assert out.action.dtype == torch.float32 and out.action[:, 0].any()


class Fixed(nn.Module):
    """Decides what it is told to; nothing of it can be trained."""

    chunk, views = 4, ("agentview",)

    def __init__(self, decide):
        super().__init__()
        self.decide = decide

    def read(self, texts):
        return None

    def act(self, seen, read, key, explore):
        return self.decide(len(seen))

    def log_prob(self, record, action):
        raise NotImplementedError

    def trainable(self):
        return []


def test_class_with_the_four_methods_is_a_policy_and_acts(tiny):
    policy = Fixed(lambda b: Decision(torch.full((b, 4, 7), 0.25, dtype=torch.float64), torch.zeros(b), None))
    assert isinstance(policy, Policy) and not isinstance(nn.Linear(1, 1), Policy)
    out = tiny.engine(policy=policy).run(tiny.starts(3), 2, SEED, stop=False)
    assert (out.action == 0.25).all() and out.action.dtype == torch.float32 and not out.broken.any()


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (
            lambda b: Decision(torch.zeros(b, 2, 7), torch.zeros(b), None),
            r"decided on actions \[1, 2, 7\] of log-probability \[1\]; they should be \[1, 4, 7\] .* and \[1\]",
        ),
        (
            lambda b: Decision(torch.zeros(b, 4, 6), torch.zeros(b), None),
            r"decided on actions \[1, 4, 6\] of log-probability \[1\]; they should be \[1, 4, 7\]",
        ),
        (
            lambda b: Decision(torch.zeros(b, 4, 7), torch.zeros(b, 4), None),
            r"decided on actions \[1, 4, 7\] of log-probability \[1, 4\]; they should be .* and \[1\]",
        ),
        (lambda b: Decision(torch.zeros(b, 4, 7), None, None), r"\[1, 4, 7\] of log-probability NoneType; they"),
        (lambda b: torch.zeros(b, 4, 7), "the policy's `act` returned a Tensor; it should return a Decision"),
        (lambda b: (torch.zeros(b, 4, 7), torch.zeros(b)), "`act` returned a tuple; it should return a Decision"),
        (lambda b: torch.distributions.Laplace(0.0, 1.0), "returned a Laplace; it should return a Decision"),
    ],
)
def test_policy_that_decides_something_else_is_told_what_is_wanted(tiny, decide, message):
    with pytest.raises(UserError, match=message):
        tiny.engine(policy=Fixed(decide)).run(tiny.starts(3), 1, SEED)
