from types import SimpleNamespace

import pytest
import torch

from worldenv.policy.laplace import SeenFeature
from worldenv.robot.kinematics import chunk_kinematics
from worldenv.rollout.episodes import Rollouts, Step


def empty(tiny, n, horizon=3, chunk=4, features=None, **options):
    record = SeenFeature(torch.ones(1, features), torch.ones(1, 7)) if features else None
    return Rollouts.empty(tiny.starts(n), horizon, chunk, 7, record, **options)


@pytest.mark.parametrize(("size", "chunks"), [(64, 10), (16, 3)])
def test_bytes_per_episode_are_those_of_the_tensors(tiny, size, chunks):
    engine, starts = tiny.engine(horizon=4 * chunks, size=size, capacity=5), tiny.starts(6, size)
    out = engine.run(starts, 1, 0)
    slot, record = engine.bytes_per_episode(starts)
    assert slot * 5 == sum(tensor.nbytes for tensor in engine.runner.episodes.tensors())
    assert record * 6 == sum(tensor.nbytes for tensor in out.tensors())
    pictures = (3 * 3 + 2) * size**2  # the first frame, the present and the clear one, and the masks of the layer
    assert pictures < slot < pictures + 4096 and record < chunks * 1024  # no frame is recorded


def test_final_reward_is_that_of_the_stop_and_else_of_the_last_step(tiny):
    out = empty(tiny, 3, chunk=2)
    out.reward.copy_(torch.arange(18).view(3, 3, 2) / 18)
    out.stop[:2] = torch.tensor([1, 4])
    assert torch.equal(out.final_reward() * 18, torch.tensor([0.0, 9.0, 17.0]))


def noted(tiny, doubts, stops=(), held=()):
    """One episode whose chunks have these doubts; it stops in the chunks `stops`, and holds something after `held`."""
    out = empty(tiny, 1, horizon=len(doubts))
    live = SimpleNamespace(row=torch.tensor([0]), chunk=torch.tensor([0]))
    for number, doubt in enumerate(doubts):
        live.chunk[0] = number
        stop = torch.full((1, 4), number in stops)
        given = torch.zeros(1, 4, 7), torch.zeros(1), None, None, None, torch.zeros(1, 4), stop
        held_now = torch.tensor([number in held])
        out.note(live, Step(*given, torch.tensor([True]), torch.tensor([doubt]), held=held_now))
    return out


def test_doubts_of_chunks_add_up_to_the_stop_and_no_further(tiny):
    assert noted(tiny, [0.5, 0.2, 0.0, 0.1]).doubt.item() == pytest.approx(1 - 0.5 * 0.8 * 0.9)
    assert noted(tiny, [0.5, 0.2, 0.9, 0.1], stops=[1, 3]).doubt.item() == pytest.approx(1 - 0.5 * 0.8)
    assert noted(tiny, [0.0, 0.0]).doubt.item() == 0.0 and noted(tiny, [0.3, 1.0]).doubt.item() == 1.0


def test_what_was_held_at_any_time_is_kept(tiny):
    assert not noted(tiny, [0.0, 0.0, 0.0]).held.item()
    assert noted(tiny, [0.0, 0.0, 0.0], held=[1]).held.item()


def test_episodes_that_are_counted_as_failures_keep_nothing_of_their_success(tiny):
    out = empty(tiny, 3, horizon=1)
    out.reward[:], out.stopped[:] = 0.9, True
    out.fail(torch.tensor([True, False, True]))
    torch.testing.assert_close(out.final_reward(), torch.tensor([0.0, 0.9, 0.0]))
    assert out.succeeded(0.5).tolist() == out.stopped.tolist() == [False, True, False]


def test_outcome_is_unsure_where_world_model_or_reflector_is(tiny):
    out = empty(tiny, 5, horizon=1)
    out.reward[:4, 0] = torch.tensor([[0.0, 0, 0, 0], [0.1, 0.5, 0.2, 0], [0, 0.2, 1, 0], [0, 0.9, 0.5, 0]])
    out.stop[3] = 2  # what comes later does not count
    out.doubt[:] = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.0])
    out.broken[4] = True
    torch.testing.assert_close(out.unsure(), torch.tensor([0.0, 0.5, 0.5, 1 - 0.5 * 0.9, 1.0]))
    out.stop[2] = 2
    assert out.unsure()[2].item() == pytest.approx(1 - 0.5 * 0.8)


def test_new_rollouts_have_neither_stopped_nor_broken_and_no_video(tiny):
    out = empty(tiny, 2)
    assert out.video is None and out.record is None
    assert out.stop.tolist() == [12, 12] and not out.stopped.any() and not out.broken.any()
    assert empty(tiny, 2, video=True).video.shape == (2, 13, 1, 16, 16, 3)


def test_room_for_records_is_as_the_policy_records_and_empty(tiny):
    out = empty(tiny, 2, features=5, siblings=3)
    assert out.record.feature.shape == (6, 3, 5) and out.record.proprio.shape == (6, 3, 7)
    assert not out.record.feature.any() and not out.record.proprio.any()
    assert out.text.tolist() == [row for row in tiny.starts(2).seen.text.tolist() for _ in range(3)]


def test_forgotten_episodes_are_as_new(tiny):
    new, out = (empty(tiny, 3, features=5, video=True) for _ in range(2))
    for tensor in out.tensors():
        if tensor is not out.text:
            tensor.fill_(1)
    out.forget(torch.tensor([0, 2]))
    for tensor, fresh in zip(out.tensors(), new.tensors(), strict=True):
        assert torch.equal(tensor[[0, 2]], fresh[[0, 2]])
    assert out.chunks[1] == 1 and out.video[1].all() and out.record.feature[1].all()


def test_rollouts_move_with_all_that_they_record(tiny):
    out = empty(tiny, 2, features=5).to("meta")
    assert all(tensor.is_meta for tensor in out.tensors()) and out.video is None and out.record.feature.is_meta


def test_poses_are_recorded_with_the_video(tiny):
    engine, starts = tiny.engine(horizon=12), tiny.starts(5)
    out = engine.run(starts, 2, 1, stop=False, video=True)
    begun = starts.seen.proprio.repeat_interleave(2, 0)
    poses = chunk_kinematics(begun, out.action.flatten(1, 2), engine.world.robot.kinematics)
    assert torch.equal(out.proprio[:, 0], begun)
    torch.testing.assert_close(out.proprio[:, 1:], poses, atol=1e-6, rtol=0)
    assert engine.run(starts, 1, 1).proprio is None


def test_asking_what_an_episode_takes_takes_no_memory(tiny):
    engine, starts = tiny.engine(horizon=10**6, size=256), tiny.starts(2, 256)
    assert engine.bytes_per_episode(starts, video=True)[1] > 10**6 * starts.seen.frames[0].numel()  # 197 GB
