"""What is noted is what was seen and done."""

import numpy as np

from worldenv.data.record import Record
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite


def test_frames_and_poses_are_those_before_and_after_each_action():
    suite, other = TabletopSuite(16), TabletopSuite(16).physics
    other.reset(TASKS[:2], [0, 1], "train")
    record = Record(suite, suite.reset(TASKS[:2], [0, 1], "train"))
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32)
    seen, poses, reached = [other.frames()], [other.proprio()], []
    for action in actions:
        record.step(action)
        reached.append(other.step(action))
        seen.append(other.frames())
        poses.append(other.proprio())
    frames, proprio, acted, success = record.stacked()
    assert np.array_equal(frames[:, :, 0], np.stack(seen, 1)) and np.array_equal(proprio, np.stack(poses, 1))
    assert np.array_equal(acted, actions.transpose(1, 0, 2)) and np.array_equal(success, np.stack(reached, 1))
    assert frames.shape == (2, 4, 1, 16, 16, 3) and success.shape == (2, 3)


def test_what_is_carried_out_in_place_of_an_action_is_not_recorded_but_its_outcome_is():
    suite, other = TabletopSuite(16), TabletopSuite(16).physics
    other.reset(TASKS[:2], [0, 1], "train")
    record = Record(suite, suite.reset(TASKS[:2], [0, 1], "train"))
    wanted, done = np.random.default_rng(0).uniform(-1, 1, (2, 2, 7)).astype(np.float32)
    record.step(wanted, done)
    other.step(done)
    _, proprio, actions, _ = record.stacked()
    assert np.array_equal(actions[:, 0], wanted) and np.array_equal(proprio[:, 1], other.proprio())


def test_trajectories_are_cut_to_their_lengths_and_empty_ones_left_out():
    suite = TabletopSuite(16)
    record = Record(suite, suite.reset(TASKS[:3], [0, 1, 2], "train"))
    for _ in range(4):
        record.step(np.zeros((3, 7), np.float32))
    first, last = record.trajectories(TASKS[:3], [0, 1, 2], "train", "expert", [2, 0, 4])
    assert (first.frames.shape, last.frames.shape) == ((3, 1, 16, 16, 3), (5, 1, 16, 16, 3))
    assert (first.start, last.start, last.task) == (0, 2, TASKS[2].name) and last.views == suite.views
    assert np.array_equal(last.camera, suite.physics.camera.projection[None])
