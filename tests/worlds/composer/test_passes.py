"""Chunks of any length from a network that makes four frames a pass: what it imagines does not depend on them."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from worldenv.interfaces.policy import Decision
from worldenv.interfaces.slots import Slots
from worldenv.rollout.runner import Runner
from worldenv.worlds.composer.passes import Pass, Passed, parts_of_passes, whole_passes

SEED, STEPS = 11, 24
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12)


@pytest.fixture(scope="module")
def models(tiny):
    return tiny.world(), tiny.reflector()


@pytest.fixture(scope="module")
def acted():
    return 2 * torch.rand(5, STEPS, 7, generator=torch.Generator().manual_seed(1)) - 1


def given(live, read, key, explore):
    return Decision(live.action, live.action.new_zeros(len(live)), None)


@torch.no_grad()
def imagine(models, starts, actions, chunk):
    """All frames [N, T, 1, H, W, 3] and rewards [N, T], and the episodes as they are at the end."""
    ids = torch.arange(len(starts))
    runner = Runner(*models, given, chunk, takes_actions=True)
    runner.open(starts)
    live, parts = runner.begin(ids, ids), []
    for part in actions.split(chunk, 1):
        live.action.copy_(part)
        new = runner.think(live, SEED, False)
        live.move_on(new.frames[:, -1], new.proprio[:, -1])
        parts.append(new)
    return torch.cat([part.frames for part in parts], 1), torch.cat([part.reward for part in parts], 1), live


@pytest.fixture(scope="module")
def in_passes(tiny, models, acted):
    return imagine(models, tiny.starts(5), acted, 4)


@pytest.mark.parametrize("chunk", [k for k in LENGTHS if STEPS % k == 0])
def test_frames_at_the_end_of_a_pass_are_the_same_for_every_chunk_length(tiny, models, acted, in_passes, chunk):
    frames, _, live = imagine(models, tiny.starts(5), acted, chunk)
    seen, expected = live.seen, in_passes[2].seen
    assert torch.equal(frames[:, 3::4], in_passes[0][:, 3::4])
    assert torch.equal(seen.proprio, expected.proprio) and torch.equal(seen.frames, expected.frames)
    memory, other = live.memory, in_passes[2].memory
    for mine, whole in ((memory.first, other.first), (memory.tips, other.tips)):
        assert torch.equal(mine, whole)
    for mine, whole in zip(memory.layer.tensors(), other.layer.tensors(), strict=True):
        assert torch.equal(mine, whole)


@pytest.mark.parametrize("chunk", [5, 7, 9])
def test_so_they_are_for_lengths_that_do_not_fit(tiny, models, acted, in_passes, chunk):
    whole = STEPS // chunk * chunk
    frames, *_ = imagine(models, tiny.starts(5), acted[:, :whole], chunk)
    assert torch.equal(frames[:, 3::4], in_passes[0][:, 3:whole:4])


@pytest.mark.parametrize("chunk", [8, 12])
def test_chunks_of_whole_passes_are_those_passes(tiny, models, acted, in_passes, chunk):
    frames, reward, live = imagine(models, tiny.starts(5), acted, chunk)
    assert torch.equal(frames, in_passes[0]) and live.memory.begun is None
    torch.testing.assert_close(reward, in_passes[1])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_within_a_pass_the_gripper_is_imagined_to_hold_still_from_the_chunk_on(tiny, models, acted, monkeypatch, chunk):
    (world, _), seen = models, []
    original = world._pass
    monkeypatch.setattr(world, "_pass", lambda *given: seen.append(given[4].clone()) or original(*given))
    starts = tiny.starts(5)
    _, _, live = imagine(models, starts, acted[:, :chunk], chunk)
    assert len(seen) == (2 if chunk == 3 else 1)  # of chunks of three some reach into a second pass
    poses, now = seen[0], live.seen.proprio
    assert torch.equal(poses[:, 0], starts.seen.proprio) and torch.equal(poses[:, chunk], now)
    assert torch.equal(poses[:, chunk:], now[:, None].expand(-1, 5 - chunk, -1))
    assert (poses[:, :chunk] != poses[:, 1 : chunk + 1]).any(2).all()


def test_every_pass_has_a_number_of_its_own_and_goes_on_from_the_last_frame_of_the_one_before():
    seen = []

    def imagine_pass(frame, poses, number):
        seen.append((frame.clone(), poses, number))
        frames = frame[:, None] + torch.arange(1, 3, dtype=torch.uint8).view(1, 2, 1, 1, 1)
        return Passed(frames, torch.tensor([True, len(seen) != 2]), torch.tensor([0.5, 0.0]))

    frame, poses = torch.zeros(2, 1, 1, 3, dtype=torch.uint8), torch.arange(7.0)[None, :, None].expand(2, 7, 1)
    frames, finite, doubt = whole_passes(imagine_pass, frame, poses, torch.tensor([0, 4]), 2)
    assert frames[0, :, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6] and finite.tolist() == [True, False]
    assert doubt.tolist() == [1 - 0.5**3, 0.0]
    assert [number.tolist() for *_, number in seen] == [[0, 12], [1, 13], [2, 14]]
    assert [part[0, :, 0].tolist() for _, part, _ in seen] == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


@dataclass
class Moved(Slots):
    """A layer that counts the passes that moved it on, in fields of several shapes."""

    times: Tensor  # [B]
    picture: Tensor  # [B, 2, 2] uint8
    held: Tensor  # [B] bool


@dataclass
class Passing(Slots):
    layer: Moved
    begun: Pass


def test_a_pass_that_is_repeated_leaves_the_layer_as_it_was():
    """Four episodes, 0 to 3 frames into a pass of four, go on by chunks of one."""
    zeros, frame = torch.zeros(4), torch.zeros(4, 1, 1, 3, dtype=torch.uint8)
    layer = Moved(zeros.clone(), torch.zeros(4, 2, 2, dtype=torch.uint8), zeros.bool())
    memory, begins = Passing(layer, Pass(frame, torch.zeros(4, 4, 7))), []

    def imagine_pass(frame, poses, number):
        begins.append(layer.times.tolist())
        for tensor in (layer.times, layer.picture):
            tensor.add_(1)
        layer.held.logical_not_()
        return Passed(torch.zeros(4, 4, 1, 1, 3, dtype=torch.uint8), torch.ones(4, dtype=torch.bool), zeros + 0.25)

    chunk, poses = torch.arange(4), torch.zeros(4, 2, 7)
    for step in range(8):
        doubt = parts_of_passes(imagine_pass, memory, poses, chunk + step, 4).doubt
        assert doubt.tolist() == [0.25 * (i == 3) for i in ((chunk + step) % 4).tolist()]  # once for every pass
        complete = (chunk + step + 1) // 4
        assert layer.times.tolist() == complete.tolist(), step
        assert torch.equal(layer.picture, complete.to(torch.uint8).view(4, 1, 1).expand(4, 2, 2))
        assert torch.equal(layer.held, complete % 2 == 1)
    assert begins[3] == [0, 1, 1, 1]  # again from where the pass began, or the next one from its end
