"""Chunks of any length from a simulator that makes four frames a pass: what it imagines does not depend on them."""

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.rollout.runner import advance, begin

SEED, STEPS = 11, 24
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12)


@pytest.fixture(scope="module")
def engine(tiny):
    return tiny.engine()


@pytest.fixture(scope="module")
def acted(tiny):
    return 2 * torch.rand(5, STEPS, 7, generator=torch.Generator().manual_seed(1)) - 1


@torch.no_grad()
def imagine(engine, starts, actions, chunk):
    """All frames [N, T, H, W, 3] and rewards [N, T], and the episodes as they are at the end."""
    ids = torch.arange(len(starts))
    live = begin(
        starts.pick(ids),
        ids,
        ids,
        starts.tokens,
        engine.reflector.read(starts.tokens),
        chunk,
        engine.world,
        engine.reflector,
    )
    parts = []
    for part in actions.split(chunk, 1):
        new = advance(live, part, engine.world, engine.reflector, engine.kinematics, SEED)
        live.move_on(new.frames[:, -1], new.proprio[:, -1])
        parts.append(new)
    return torch.cat([part.frames for part in parts], 1), torch.cat([part.reward for part in parts], 1), live


@pytest.fixture(scope="module")
def in_passes(tiny, engine, acted):
    return imagine(engine, tiny.starts(5), acted, 4)


@pytest.mark.parametrize("chunk", [k for k in LENGTHS if STEPS % k == 0])
def test_frames_at_the_end_of_a_pass_are_the_same_for_every_chunk_length(tiny, engine, acted, in_passes, chunk):
    frames, _, live = imagine(engine, tiny.starts(5), acted, chunk)
    assert torch.equal(frames[:, 3::4], in_passes[0][:, 3::4])
    assert torch.equal(live.proprio, in_passes[2].proprio) and torch.equal(live.frame, in_passes[2].frame)
    for name in ("first", "previous"):
        assert torch.equal(getattr(live.memory, name), getattr(in_passes[2].memory, name))


@pytest.mark.parametrize("chunk", [5, 7, 9])
def test_so_they_are_for_lengths_that_do_not_fit(tiny, engine, acted, in_passes, chunk):
    whole = STEPS // chunk * chunk
    frames, *_ = imagine(engine, tiny.starts(5), acted[:, :whole], chunk)
    assert torch.equal(frames[:, 3::4], in_passes[0][:, 3:whole:4])


@pytest.mark.parametrize("chunk", [8, 12])
def test_chunks_of_whole_passes_are_those_passes(tiny, engine, acted, in_passes, chunk):
    frames, reward, _ = imagine(engine, tiny.starts(5), acted, chunk)
    assert torch.equal(frames, in_passes[0])
    torch.testing.assert_close(reward, in_passes[1])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_within_a_pass_the_gripper_is_imagined_to_hold_still_from_the_chunk_on(tiny, engine, acted, monkeypatch, chunk):
    seen, original = [], engine.world.imagine
    monkeypatch.setattr(engine.world, "imagine", lambda *given: seen.append(given[2].clone()) or original(*given))
    starts = tiny.starts(5)
    _, _, live = imagine(engine, starts, acted[:, :chunk], chunk)
    assert len(seen) == (2 if chunk == 3 else 1)  # of chunks of three some reach into a second pass
    poses = seen[0]
    assert torch.equal(poses[:, 0], starts.proprio) and torch.equal(poses[:, chunk], live.proprio)
    assert torch.equal(poses[:, chunk:], live.proprio[:, None].expand(-1, 5 - chunk, -1))
    assert (poses[:, :chunk] != poses[:, 1 : chunk + 1]).any(2).all()


class Own(nn.Module):
    """Somebody else's policy: it reads tokens, in a width of its own, and returns chunks of `k` actions."""

    def __init__(self, k: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.k, self.words, self.out = k, nn.Embedding(64, 8, dtype=dtype), nn.Linear(8 + 7 + 3, 14 * k, dtype=dtype)

    def forward(self, frame, proprio, tokens):
        assert tokens.dtype == torch.int64 and frame.dtype == torch.uint8
        seen = torch.cat([self.words(tokens).mean(1), proprio, frame.float().mean((1, 2)) / 255], dim=1)
        mu, scale = self.out(seen.to(self.out.weight.dtype)).unflatten(1, (self.k, 14)).split(7, 2)
        return mu.tanh(), scale - 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8])
def test_any_module_acts_in_chunks_of_its_own_length(tiny, chunk):
    engine = tiny.engine(horizon=4, policy=Own(chunk), chunk=chunk, capacity=3)
    out = engine.run(tiny.starts(5), 2, SEED, stop=False, video=True)
    assert out.action.shape == (10, 4, chunk, 7) and out.reward.shape == (10, 4, chunk) and (out.chunks == 4).all()
    assert out.video.shape[1] == 4 * chunk + 1 and not out.broken.any()
    assert torch.equal(out.video[:, : 4 * chunk : chunk], out.frame)
    whole = 4 * chunk
    frames, *_ = imagine(tiny.engine(), tiny.starts(5), out.action[::2].flatten(1, 2)[:, :whole], 4)
    off = (frames[0, 3::4].int() - out.video[0, 4 : whole + 1 : 4].int()).abs() > 1  # episode 0: the same number
    assert off.float().mean() < 0.001


def test_length_of_the_chunks_is_the_policys_or_else_the_simulators(tiny):
    assert tiny.engine(policy=tiny.policy(chunk=2)).chunk == 2
    assert tiny.engine(policy=Own(4)).chunk == 4


def test_memory_of_a_slot_says_what_the_chunks_cost(tiny):
    starts, frame = tiny.starts(2), 3 * 16 * 16
    in_passes, in_parts = (tiny.engine(policy=Own(k), chunk=k).bytes_per_episode(starts)[0] for k in (8, 3))
    assert in_parts - in_passes == frame + 4 * 7 * 4


def test_policy_of_another_dtype_is_heard(tiny):
    out = tiny.engine(horizon=2, policy=Own(4, torch.bfloat16)).run(tiny.starts(3), 1, SEED, explore=False)
    assert out.action.dtype == torch.float32 and out.action[:, 0].any()


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, frame, proprio, tokens):
        return self.value(len(frame))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (lambda b: (torch.zeros(b, 2, 7), torch.zeros(b, 2, 7)), r"\[3, 2, 7\] and \[3, 2, 7\]"),
        (lambda b: (torch.zeros(b, 4, 7), torch.zeros(7)), r"\[3, 4, 7\] and \[7\]"),
        (lambda b: torch.zeros(b, 4, 7), r"\[3, 4, 7\]"),
        (lambda b: (torch.zeros(b, 4, 7), None), r"\[3, 4, 7\] and NoneType"),
        (lambda b: torch.distributions.Laplace(0.0, 1.0), "Laplace"),
    ],
)
def test_policy_that_returns_something_else_is_told_what_is_wanted(tiny, value, found):
    engine = tiny.engine(policy=Returns(value))
    with pytest.raises(UserError, match=rf"returned {found}; it should return mu and beta, both \[3, 4, 7\]"):
        engine.run(tiny.starts(3), 1, SEED)
