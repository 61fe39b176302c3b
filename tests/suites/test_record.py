"""Episodes of any suite, noted step by step."""

import numpy as np
import pytest

from worldenv.suites.record import Record
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

STEPS = 3


@pytest.fixture(scope="module")
def actions():
    return np.random.default_rng(0).uniform(-1, 1, (STEPS, 2, 7)).astype(np.float32)


@pytest.fixture
def record(actions):
    suite = TabletopSuite(16)
    record = Record(suite, suite.reset(TASKS[:2], [0, 1], "train"))
    for action in actions:
        record.step(action)
    return record


def test_frames_and_poses_are_those_before_and_after_each_action(record, actions):
    other = Tabletop(16, threads=1)
    other.reset(TASKS[:2], [0, 1], "train")
    frames, proprio, noted, success = record.stacked()
    assert frames.shape == (2, STEPS + 1, 1, 16, 16, 3) and success.shape == (2, STEPS)
    assert np.array_equal(noted, actions.swapaxes(0, 1))
    for t in range(STEPS + 1):
        assert np.array_equal(frames[:, t, 0], other.frames()) and np.array_equal(proprio[:, t], other.proprio())
        if t < STEPS:
            assert np.array_equal(success[:, t], other.step(actions[t]))


def test_step_says_what_is_seen_then(actions):
    suite = TabletopSuite(16)
    record = Record(suite, suite.reset(TASKS[:2], [0, 1], "train"))
    seen = record.step(actions[0])
    assert np.array_equal(seen.frames.numpy(), record.frames[1])
    assert np.array_equal(seen.proprio.numpy(), record.proprio[1])


def test_trajectories_are_labelled_whole_or_cut_and_left_out_at_length_0(record):
    frames, proprio, actions, success = record.stacked()
    whole = record.trajectories(TASKS[:2], [0, 1], "train", "policy")
    for i, trajectory in enumerate(whole):
        assert np.array_equal(trajectory.frames, frames[i]) and np.array_equal(trajectory.actions, actions[i])
        assert (trajectory.task, trajectory.start, trajectory.split) == (TASKS[i].name, i, "train")
        assert trajectory.source == "policy" and trajectory.views == ("agentview",)
        assert trajectory.instruction == record.begun.instructions[i]
        assert np.array_equal(trajectory.camera, record.begun.seen.camera[i].numpy())
    (cut,) = record.trajectories(TASKS[:2], [0, 1], "train", "expert", [0, 2])
    assert cut.task == TASKS[1].name and np.array_equal(cut.frames, frames[1, :3])
    assert np.array_equal(cut.proprio, proprio[1, :3]) and np.array_equal(cut.success, success[1, :2])


def test_suite_without_a_camera_matrix_leaves_none_in_its_trajectories(record):
    record.begun.seen.camera = None
    assert all(t.camera is None for t in record.trajectories(TASKS[:2], [0, 1], "train", "policy"))
