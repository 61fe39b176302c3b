"""What the composer is trained on, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.nn.instruction import tokenize
from worldenv.ops.action_map import action_map
from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.physics import start_state, task_by_name
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.suites.tabletop.things import TabletopThings
from worldenv.training import train_composer
from worldenv.training.layers import Layers
from worldenv.training.train_composer import (
    ARM_CHANGE_WEIGHT,
    ARM_LEVEL,
    CHANGE_WEIGHT,
    CLOSING_SHARE,
    FIRST_SHARE,
    IDLE_SHARE,
    MOVING_SHARE,
    THING_WEIGHT,
    ChunkBatch,
    change_weight,
    clean_background,
    draw_steps,
    student_loss,
    teacher_loss,
    to_pixels,
    unlike,
)
from worldenv.worlds.composer.network import ComposerNetwork

ROBOT = moved_gripper(Kinematics(), clear_m=CLEAR_M)


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(20, 0), tiny.trajectory(12, 1), tiny.trajectory(17, 2)])


PLATE = torch.full((8, 8, 12), -1.0)  # as dark as the first frames


def layers_of(clips, moving=(), proprio=None):
    """Labels of tables on which nothing moves, but the task's object from some step on, in some (episode, step)."""
    starts = [start_state(task_by_name(task), 0, "train")[0] for task in clips.tasks]
    states = np.repeat(np.stack(starts)[:, None], clips.proprio.shape[1], axis=1)
    for episode, step in moving:
        thing = 15 + 8 * int(states[episode, 0, 13])
        states[episode, step:, thing + 2] += 0.05
    things = TabletopThings(states, clips.frame_shape[1])
    return Layers(clips.proprio if proprio is None else proprio, things, 4, ROBOT.clear_m)


@pytest.fixture
def layers(clips):
    return layers_of(clips, [(0, 6), (2, 9)])


def values(frames):  # [B, K, H, W, 3] in [-1, 1] -> 40 * episode + step
    return (frames[:, :, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()


def test_a_batch_shows_the_frames_and_poses_of_its_episodes_and_steps(clips, layers):
    episode, step = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 3, 9, 16])
    batch = ChunkBatch(clips, layers, ROBOT, PLATE, episode, step)
    assert values(batch.clean) == [[1, 2, 3, 4], [44, 45, 46, 47], [90, 91, 92, 93], [17, 18, 19, 20]]
    known = torch.stack([batch.first, batch.clear, batch.last], dim=1)[:, :, 0, 0, 0]
    # The gripper is above everything from 61 mm on.
    assert known.tolist() == [[0, 0, 0], [40, 40, 43], [80, 89, 89], [0, 0, 16]]
    assert batch.is_clear.tolist() == [True, False, True, False]
    poses = (batch.poses[..., 4] * 1000).round().int().tolist()
    assert poses == [[0, 1, 2, 3, 4], [43, 44, 45, 46, 47], [89, 90, 91, 92, 93], [16, 17, 18, 19, 20]]


@pytest.mark.parametrize("chunks", [1, 3])
def test_steps_leave_room_within_the_episode_and_reach_its_end(clips, layers, chunks):
    episode, step = draw_steps(clips, layers, 4000, chunks, torch.Generator().manual_seed(0))
    for i, length in enumerate((20, 12, 17)):
        own = step[episode == i]
        assert own.min() == 0 and own.max() == length - 4 * chunks


def test_first_chunks_are_drawn_more_often(clips):
    _, step = draw_steps(clips, layers_of(clips), 9000, 1, torch.Generator().manual_seed(0))
    by_chance = 3 / (17 + 9 + 14)
    assert (step == 0).float().mean().item() == pytest.approx(FIRST_SHARE + (1 - FIRST_SHARE) * by_chance, abs=0.02)


def test_chunks_that_touch_nothing_are_drawn_less_often_and_low_closings_more_often(clips, monkeypatch):
    monkeypatch.setattr(train_composer, "FIRST_SHARE", 0.0)
    poses = clips.proprio.clone()
    poses[..., 2], poses[..., 6] = 0.1, 1.0
    poses[1, :, 2] = 0.03  # one is low all the time, and closes at step 7
    poses[1, 7:, 6] = 0.0
    poses[2, 7:, 6] = 0.0  # one closes in the air
    clips = replace(clips, proprio=poses)
    episode, step = draw_steps(clips, layers_of(clips), 20000, 1, torch.Generator().manual_seed(0))
    drawn = [torch.bincount(step[episode == i], minlength=17).tolist() for i in range(3)]
    one = sum(drawn[2][3:14]) / 11  # closing in the air, and closed: once
    assert all(n == pytest.approx(IDLE_SHARE * one, rel=0.35) for n in drawn[0] + drawn[2][:3])
    assert all(n == pytest.approx(CLOSING_SHARE * one, rel=0.2) for n in drawn[1][3:7])
    assert all(n == pytest.approx(one, rel=0.3) for n in drawn[1][:3] + drawn[1][7:9])


def test_chunks_in_which_something_has_been_moved_are_drawn_more_often(clips, monkeypatch):
    monkeypatch.setattr(train_composer, "FIRST_SHARE", 0.0)
    layers = layers_of(clips, [(1, 6)])  # low all the time, so the clear frame is the first for ever
    assert layers.moves()[1].tolist() == [False] * 2 + [True] * 19  # a chunk ends four steps later
    episode, step = draw_steps(clips, layers, 20000, 1, torch.Generator().manual_seed(0))
    drawn = torch.bincount(step[episode == 1], minlength=9).tolist()
    still = sum(drawn[:2]) / 2
    assert all(n == pytest.approx(MOVING_SHARE * still, rel=0.2) for n in drawn[2:9])


def test_episode_shorter_than_the_chunks_begins_at_its_start(tiny):
    clips = Clips.of([tiny.trajectory(5, 0), tiny.trajectory(20, 1)])
    episode, step = draw_steps(clips, layers_of(clips), 500, 3, torch.Generator().manual_seed(0))
    assert (step[episode == 0] == 0).all() and step[episode == 1].max() == 8


def test_clips_that_are_all_too_short_are_refused(tiny):
    with pytest.raises(ValueError, match="the longest clip has 5 steps; 3 chunks of 4 are more"):
        clips = Clips.of([tiny.trajectory(5)])
        draw_steps(clips, layers_of(clips), 4, 3, torch.Generator())


def picture(*marks):  # [1, 1, 2, 2, 3], black but for (channel, row, column, value)
    frames = torch.zeros(1, 1, 2, 2, 3)
    for channel, row, column, value in marks:
        frames[0, 0, row, column, channel] = value
    return frames


NOWHERE = torch.zeros(1, 1, 2, 2, 1, dtype=torch.bool)
MANY = 1 + CHANGE_WEIGHT


def test_changing_pixels_weigh_more_and_less_so_at_the_arm():
    clean, arm = picture((1, 0, 0, 0.5), (1, 0, 1, 0.5)), NOWHERE.clone()  # the upper row changes
    arm[..., 0, :] = True  # the arm is on the left
    weight = change_weight(clean, clean, arm, torch.zeros(1, 2, 2, 3))
    assert weight[0, 0, ..., 0].tolist() == [[1 + ARM_CHANGE_WEIGHT, MANY], [1, 1]]


def test_pixels_that_either_memory_shows_otherwise_weigh_more():
    memories = picture((0, 0, 0, 0.5))[:, 0], picture((2, 1, 1, -0.5))[:, 0]
    assert change_weight(picture(), picture(), NOWHERE, *memories)[0, 0, ..., 0].tolist() == [[MANY, 1], [1, MANY]]


def test_change_that_is_only_predicted_weighs_as_much_as_change_that_is_missed():
    moved, last = picture((0, 0, 0, 0.5), (0, 1, 1, -0.5)), torch.zeros(1, 2, 2, 3)
    missed, invented = change_weight(moved, picture(), NOWHERE, last), change_weight(picture(), moved, NOWHERE, last)
    assert missed[0, 0, ..., 0].tolist() == invented[0, 0, ..., 0].tolist() == [[MANY, 1], [1, MANY]]
    moved.requires_grad_()
    assert not change_weight(picture(), moved, NOWHERE, last).requires_grad


def test_arm_is_where_it_is_drawn_in_the_frame_or_was_before_the_chunk(clips):
    poses = clips.proprio.clone()
    poses[:, :, :6] = torch.tensor([0.0, 0.1, 0.05, 0.0, 0.0, 0.0])
    poses[:, 1:, 0] = 0.15  # to the right at once
    clips = replace(clips, proprio=poses)
    first = torch.tensor([0]), torch.tensor([0])
    batch = ChunkBatch(clips, layers_of(clips), ROBOT, PLATE, *first)
    maps = action_map(poses[0, :2], clips.camera[:1].expand(2, 1, 3, 4), ROBOT.gripper, 16, 16)[:, 0]
    before, after = (maps[i, 0] > ARM_LEVEL for i in (0, 1))
    assert before.any() and after.any() and not (before & after).any()
    hand = [maps[i, 2] > ARM_LEVEL for i in (0, 1)]
    assert torch.equal(batch.arm[0, 0, ..., 0], before | after | hand[0] | hand[1])
    other = ChunkBatch(clips, layers_of(clips), ROBOT, PLATE + 1, *first)  # where it was there is no empty scene now
    assert torch.equal(other.arm[0, 0, ..., 0], after | hand[1])


def test_pixels_of_the_moved_thing_weigh_more_where_it_is_after_each_action(clips, layers):
    batch = ChunkBatch(clips, layers, ROBOT, PLATE, torch.tensor([0, 1]), torch.tensor([4, 4]))  # it moves at step 6
    weight = batch.weight(batch.clean, batch.clean[:, 0])
    torch.testing.assert_close(
        weight, change_weight(batch.clean, batch.clean, batch.arm, batch.clean[:, 0]) + THING_WEIGHT * batch.thing
    )
    area, x = batch.thing.sum((2, 3, 4)), torch.arange(16.0)
    middle = (batch.thing * x[:, None]).sum((2, 3, 4)) / area.clamp(min=1)
    assert (area[0] > 1).all() and not area[1].any()  # nothing moves in the other
    assert torch.equal(batch.thing[0, 0], batch.thing[0, 0].clamp(0, 1))
    assert middle[0, 1] - middle[0, 0] > 1.5 and middle[0, 1:].std() < 1e-4


def test_plate_shows_what_stands_still():
    frames = torch.full((9, 4, 4, 3), 200, dtype=torch.uint8)
    frames[..., 1] = 100
    frames[2:5, 1, 1] = 0  # something passes by
    plate = clean_background(frames)
    expected = torch.tensor([200, 100, 200]) / 127.5 - 1
    torch.testing.assert_close(plate, expected.repeat_interleave(4).expand(2, 2, 12))


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


def test_teacher_learns(tiny, clips, layers):
    teacher = tiny.simulator()
    first, last = learn(teacher, teacher_loss(teacher, clips, layers, ROBOT, 8), 25, 3e-3)
    assert last < 0.7 * first


def test_student_learns(tiny, clips, layers):
    student = tiny.simulator(1)
    first, last = learn(student, student_loss(student, tiny.policy().encoder, clips, layers, ROBOT, 4, 3), 25, 3e-3)
    assert last < 0.8 * first


def test_frames_that_the_encoder_reads_alike_are_alike(tiny, clips, layers):
    encoder, tokens = tiny.policy().encoder, tokenize(["put"] * 2)
    part = ChunkBatch(clips, layers, ROBOT, PLATE, torch.tensor([0, 1]), torch.tensor([2, 5]))
    assert unlike(encoder, part.clean, part, tokens).item() < 1e-6
    predicted = (part.clean + 0.3).requires_grad_()
    unlike(encoder, predicted, part, tokens).backward()
    assert predicted.grad[:, -1].any() and not predicted.grad[:, :-1].any()


def test_student_loss_leaves_the_encoder_as_it_is(tiny, clips, layers):
    encoder = tiny.policy().encoder
    value, _ = student_loss(tiny.simulator(1), encoder, clips, layers, ROBOT, 4, 2)(torch.Generator().manual_seed(0))
    value.backward()
    assert all(p.grad is None for p in encoder.parameters())


def test_student_goes_on_from_its_own_frames(tiny, clips, layers, monkeypatch):
    student, known, made, denoise = tiny.simulator(1), [], [], ComposerNetwork.denoise
    monkeypatch.setattr(train_composer, "known_pictures", lambda *given: known.append(given) or known_pictures(*given))
    monkeypatch.setattr(student, "denoise", lambda *rest: made.append(denoise(student, *rest)) or made[-1])
    steps = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 3])  # episode 2 is above everything, the others are not
    monkeypatch.setattr(train_composer, "draw_steps", lambda *given: steps)
    student_loss(student, tiny.policy().encoder, clips, layers, ROBOT, 3, 3)(torch.Generator().manual_seed(0))
    assert len(known) == 3
    for before, after, frames in zip(known, known[1:], made, strict=False):
        assert torch.equal(after[0], known[0][0])
        assert torch.equal(after[1], to_pixels(to_frames(frames)[:, -1].detach()))
        assert torch.equal(after[2][:2], before[2][:2]) and torch.equal(after[2][2], after[1][2])
