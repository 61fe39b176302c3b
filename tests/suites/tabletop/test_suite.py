"""The embedded suite behind the interface that every suite has."""

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.suite import Suite
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.suites.tabletop.physics import HORIZON, Tabletop
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

SOME, NUMBERS = [TASKS[0], TASKS[7], TASKS[3]], [4, 5, 6]


@pytest.fixture
def suite():
    return TabletopSuite(16)


def actions(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, len(SOME), 7)).astype(np.float32)


def test_it_is_a_suite(suite):
    assert isinstance(suite, Suite)
    assert suite.name == "tabletop" and suite.tasks == TASKS and suite.horizon == HORIZON == 40
    assert suite.views == ("agentview",) and suite.robot.action_size == suite.robot.proprio_size == 7
    assert all(task.name and task.instructions for task in suite.tasks)


def test_reset_shows_what_the_physics_shows_from_the_camera_that_it_has(suite):
    starts = suite.reset(SOME, NUMBERS, "train")
    physics = Tabletop(16, threads=1)
    physics.reset(SOME, NUMBERS, "train")
    seen = starts.seen
    assert isinstance(starts, Starts) and len(starts) == 3 and starts.device == torch.device("cpu")
    assert np.array_equal(seen.frames[:, 0].numpy(), physics.frames()) and seen.frames.shape == (3, 1, 16, 16, 3)
    assert np.array_equal(seen.proprio.numpy(), physics.proprio()) and seen.proprio.dtype == torch.float32
    assert seen.camera.shape == (3, 1, 3, 4) and seen.camera.dtype == torch.float32
    assert np.array_equal(seen.camera[2, 0].numpy(), tabletop_camera(16).projection)
    assert starts.instructions == physics.instructions and list(starts.texts) == sorted(set(physics.instructions))


def test_step_carries_out_the_action_and_says_what_is_done(suite):
    starts, physics = suite.reset(SOME, NUMBERS, "train"), Tabletop(16, threads=1)
    physics.reset(SOME, NUMBERS, "train")
    proprio = starts.seen.proprio
    for action in actions(8):
        seen, success = suite.step(action)
        assert np.array_equal(success, physics.step(action)) and success.dtype == np.bool_ and success.shape == (3,)
        assert np.array_equal(seen.frames[:, 0].numpy(), physics.frames())
        assert torch.equal(seen.text, starts.seen.text) and torch.equal(seen.camera, starts.seen.camera)
        proprio = chunk_kinematics(proprio, torch.from_numpy(action)[:, None], Kinematics())[:, 0]
        torch.testing.assert_close(seen.proprio, proprio, rtol=0, atol=1e-5)


def test_what_was_shown_does_not_change_with_the_next_step(suite):
    starts = suite.reset(SOME, NUMBERS, "train")
    first = starts.seen.each(torch.clone)
    for action in actions(3):
        suite.step(action)
    assert all(torch.equal(a, b) for a, b in zip(starts.seen.tensors(), first.tensors(), strict=True))


def test_splits_share_no_start_and_an_unknown_one_is_refused(suite):
    train, test = (suite.reset(SOME, NUMBERS, split).seen.frames for split in ("train", "test"))
    assert (train != test).flatten(1).any(1).all()
    assert torch.equal(suite.reset(SOME, NUMBERS, "train").seen.frames, train)
    with pytest.raises(UserError, match="unknown split 'trian' — did you mean \"train\"?"):
        suite.reset(SOME, NUMBERS, "trian")
    with pytest.raises(UserError, match="reset got 3 tasks and 2 starts"):
        suite.reset(SOME, NUMBERS[:2], "train")


def test_proprioception_stays_within_the_robots_bounds(suite):
    suite.reset(SOME, NUMBERS, "train")
    low, high = (torch.tensor(bound) for bound in (suite.robot.low, suite.robot.high))
    for action in actions(40, seed=1) * 3:
        seen, _ = suite.step(action)
        assert ((seen.proprio >= low - 1e-6) & (seen.proprio <= high + 1e-6)).all()
