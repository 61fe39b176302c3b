"""What the simulator is trained on, and that it learns."""

import pytest
import torch

from worldenv.camera import tabletop_camera
from worldenv.data.clips import Clips
from worldenv.ops.action_map import action_map
from worldenv.training.train_simulator import (
    CHANGE_WEIGHT,
    ChunkBatch,
    change_weight,
    draw_steps,
    student_loss,
    teacher_loss,
)

PROJECTION = torch.from_numpy(tabletop_camera(16).projection)


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(20, 0), tiny.trajectory(12, 1), tiny.trajectory(17, 2)])


def values(frames):  # [B, K, 3, H, W] in [-1, 1] -> 40 * episode + step
    return (frames[:, :, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()


def test_a_batch_shows_the_frames_and_poses_of_its_episodes_and_steps(clips):
    episode, step = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 3, 9, 16])
    batch = ChunkBatch(clips, PROJECTION, 4, episode, step)
    assert values(batch.clean) == [[1, 2, 3, 4], [44, 45, 46, 47], [90, 91, 92, 93], [17, 18, 19, 20]]
    assert values(batch.memory) == [[0, 0, 0], [40, 40, 43], [80, 85, 89], [0, 12, 16]]
    poses = (batch.poses[..., 4] * 1000).round().int().tolist()
    assert poses == [[0, 1, 2, 3, 4], [43, 44, 45, 46, 47], [89, 90, 91, 92, 93], [16, 17, 18, 19, 20]]
    assert torch.equal(batch.maps[2, 3], action_map(batch.poses[2, 3:4], PROJECTION, 16, 16)[0])


@pytest.mark.parametrize("chunks", [1, 3])
def test_steps_leave_room_within_the_episode_and_reach_its_end(clips, chunks):
    episode, step = draw_steps(clips, 4000, chunks, 4, torch.Generator().manual_seed(0))
    for i, length in enumerate((20, 12, 17)):
        own = step[episode == i]
        assert own.min() == 0 and own.max() == length - 4 * chunks


def test_episode_shorter_than_the_chunks_begins_at_its_start(tiny):
    clips = Clips.of([tiny.trajectory(5, 0), tiny.trajectory(20, 1)])
    episode, step = draw_steps(clips, 500, 3, 4, torch.Generator().manual_seed(0))
    assert (step[episode == 0] == 0).all() and step[episode == 1].max() == 8


def test_clips_that_are_all_too_short_are_refused(tiny):
    with pytest.raises(ValueError, match="the longest clip has 5 steps; 3 chunks of 4 are more"):
        draw_steps(Clips.of([tiny.trajectory(5)]), 4, 3, 4, torch.Generator())


def test_changing_pixels_weigh_more():
    last, clean = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 3, 2, 2)
    clean[0, 0, 1, 0, 0] = 0.5
    predicted = clean + 0.1
    expected = 0.01 * (3 + 1 + CHANGE_WEIGHT) / 4
    assert (change_weight(clean, last) * (predicted - clean).square()).mean().item() == pytest.approx(expected)


def learn(module, loss, steps, rate):
    optimizer, errors = torch.optim.Adam(module.parameters(), rate), []
    for step in range(steps):
        value, _ = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        errors.append(value.item())
    first, last = sum(errors[:5]) / 5, sum(errors[-5:]) / 5
    return first, last


def test_teacher_learns(tiny, clips):
    teacher = tiny.simulator()
    first, last = learn(teacher, teacher_loss(teacher, clips, PROJECTION, 8), 25, 3e-3)
    assert last < 0.7 * first


def test_student_learns(tiny, clips):
    student = tiny.simulator(1)
    first, last = learn(student, student_loss(student, clips, PROJECTION, 4, 3), 25, 3e-3)
    assert last < 0.8 * first


def test_student_goes_on_from_its_own_frames(tiny, clips, monkeypatch):
    student, memories, made = tiny.simulator(1), [], []
    see, denoise = student.see, student.denoise
    monkeypatch.setattr(student, "see", lambda memory, *rest: memories.append(memory) or see(memory, *rest))
    monkeypatch.setattr(student, "denoise", lambda *rest: made.append(denoise(*rest)) or made[-1])
    student_loss(student, clips, PROJECTION, 4, 3)(torch.Generator().manual_seed(0))
    assert len(memories) == 3
    for before, after, frames in zip(memories, memories[1:], made, strict=False):
        assert torch.equal(after[:, 0], memories[0][:, 0]) and torch.equal(after[:, 1], before[:, 2])
        assert torch.equal(after[:, 2], frames[:, -1].detach().clamp(-1, 1)) and not after.requires_grad
