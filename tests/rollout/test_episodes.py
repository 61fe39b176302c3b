import pytest
import torch

from worldenv.rollout.episodes import Rollouts, Starts


@pytest.mark.parametrize(("size", "horizon"), [(64, 10), (16, 3)])
def test_bytes_per_episode_are_those_of_the_tensors(tiny, size, horizon):
    engine, starts = tiny.engine(horizon=horizon, size=size, capacity=5), tiny.starts(6, size)
    out = engine.run(starts, 1, 0)
    slot, record = engine.bytes_per_episode(starts)
    assert slot * 5 == sum(tensor.nbytes for tensor in engine.episodes.tensors())
    held = sum(tensor.nbytes for tensor in vars(out).values() if tensor is not None)
    assert record * 6 == held
    frame = 3 * size**2
    assert 3 * frame < slot < 3 * frame + 4096 and horizon * frame < record < horizon * (frame + 1024)


def test_final_reward_is_that_of_the_stop_and_else_of_the_last_step(tiny):
    out = Rollouts.empty(tiny.starts(3), 3, 2, video=False)
    out.reward.copy_(torch.arange(18).view(3, 3, 2) / 18)
    out.stop[:2] = torch.tensor([1, 4])
    assert torch.equal(out.final_reward() * 18, torch.tensor([0.0, 9.0, 17.0]))


def test_new_rollouts_have_neither_stopped_nor_broken_and_no_video(tiny):
    out = Rollouts.empty(tiny.starts(2), 3, 4, video=False)
    assert out.video is None and out.stop.tolist() == [12, 12] and not out.stopped.any() and not out.broken.any()
    assert Rollouts.empty(tiny.starts(2), 3, 4, video=True).video.shape == (2, 13, 16, 16, 3)


def test_forgotten_episodes_are_as_new(tiny):
    new, out = (Rollouts.empty(tiny.starts(3), 3, 4, video=True, features=5) for _ in range(2))
    for name, tensor in vars(out).items():
        if name != "tokens":
            tensor.fill_(1)
    out.forget(torch.tensor([0, 2]))
    for name, tensor in vars(out).items():
        assert torch.equal(tensor[[0, 2]], getattr(new, name)[[0, 2]]), name
    assert out.chunks[1] == 1 and out.frame[1].all()


def test_picked_starts_stay_together(tiny):
    starts = tiny.starts(4)
    picked = starts.pick(torch.tensor([3, 0, 3]))
    assert isinstance(picked, Starts) and len(picked) == 3
    for name in ("frame", "proprio", "tokens"):
        assert torch.equal(getattr(picked, name), getattr(starts, name)[[3, 0, 3]])
