from dataclasses import fields

import pytest
import torch

from worldenv.rollout.episodes import Rollouts, Starts, bytes_per_episode


@pytest.mark.parametrize(("size", "horizon", "chunk"), [(64, 10, 4), (16, 3, 1), (256, 7, 8)])
def test_bytes_per_episode_are_those_of_the_tensors(tiny, size, horizon, chunk):
    starts = tiny.starts(3, size)
    out = Rollouts.empty(starts, horizon, chunk, video=False)
    records = [getattr(out, field.name) for field in fields(out)]
    held = sum(tensor.nbytes for tensor in records if tensor is not None) / 3 + 3 * starts.frame[0].nbytes
    counted = bytes_per_episode(size, horizon, chunk)
    assert counted == pytest.approx(held, rel=0.05)
    assert 0 <= held - counted <= 128  # the instruction and the flags are not counted, everything that grows is


def test_final_reward_is_that_of_the_stop_and_else_of_the_last_step(tiny):
    out = Rollouts.empty(tiny.starts(3), 3, 2, video=False)
    out.reward.copy_(torch.arange(18).view(3, 3, 2) / 18)
    out.stop[:2] = torch.tensor([1, 4])
    assert torch.equal(out.final_reward() * 18, torch.tensor([0.0, 9.0, 17.0]))


def test_new_rollouts_have_neither_stopped_nor_broken_and_no_video(tiny):
    out = Rollouts.empty(tiny.starts(2), 3, 4, video=False)
    assert out.video is None and out.stop.tolist() == [12, 12] and not out.stopped.any() and not out.broken.any()
    assert Rollouts.empty(tiny.starts(2), 3, 4, video=True).video.shape == (2, 13, 16, 16, 3)


def test_picked_starts_stay_together(tiny):
    starts = tiny.starts(4)
    picked = starts.pick(torch.tensor([3, 0, 3]))
    assert isinstance(picked, Starts) and len(picked) == 3
    for name in ("frame", "proprio", "tokens"):
        assert torch.equal(getattr(picked, name), getattr(starts, name)[[3, 0, 3]])
