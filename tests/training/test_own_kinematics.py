"""Kinematics fitted to a run's own episodes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.training.own_kinematics import refitted
from worldenv.training.pipeline import Pipeline

STEPS = 40


def arm(step):
    return FittedKinematics(step * np.eye(7), 0.01 * np.eye(7), 0.3 * np.eye(7), (0.0,) * 7, (0.0, 1.0))


def acted_out(shown, kinematics, episodes):
    """Clips of an arm with these kinematics, from places all around and with random actions."""
    draw = torch.Generator().manual_seed(0)
    actions = 2 * torch.rand(episodes, STEPS, 7, generator=draw) - 1
    begin = torch.rand(episodes, 7, generator=draw) * torch.tensor([0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 1.0])
    poses, _ = kinematics.follow(begin, kinematics.rest(begin), actions)
    clips, length = shown.pick(torch.zeros(episodes, dtype=torch.int64)), torch.full((episodes,), STEPS)
    return replace(clips, proprio=torch.cat([begin[:, None], poses], dim=1), actions=actions, length=length)


def test_kinematics_are_fitted_to_the_episodes(shown):
    robot, clips = replace(moved_gripper(Kinematics()), kinematics=arm(0.02)), acted_out(shown, arm(0.03), 40)
    clips.length[1:] -= 5  # what comes after an episode's end is no motion of the arm
    clips.proprio[1:, -5:] = 0
    found = refitted(robot, clips).kinematics
    assert found.reach is not None and np.diag(found.step)[:3] == pytest.approx(0.03, abs=1e-3)


def test_robot_stays_as_it_is_where_episodes_do_not_determine_the_fit(shown, capsys):
    robot, clips = replace(moved_gripper(Kinematics()), kinematics=arm(0.02)), acted_out(shown, arm(0.03), 3)
    assert refitted(robot, clips) is robot
    told = capsys.readouterr().err
    assert told.startswith("kinematics: not fitted to this run's episodes, those of the suite stay: there are 117")
    assert told.count("\n") == 1 and refitted(robot, clips, tell=False) is robot and not capsys.readouterr().err


@pytest.mark.parametrize(("extra_data", "records_what_is_done"), [(True, False), (False, True), (False, False)])
def test_only_what_was_carried_out_is_fitted(shown, extra_data, records_what_is_done):
    """Of episodes whose actions are not those that were carried out, kinematics cannot be learned."""
    robot, clips = replace(moved_gripper(Kinematics()), kinematics=arm(0.02)), acted_out(shown, arm(0.03), 40)
    pipeline = SimpleNamespace(
        suite=SimpleNamespace(robot=robot),
        config=SimpleNamespace(extra_data=extra_data),
        lessons=SimpleNamespace(records_what_is_done=records_what_is_done),
        ranks=SimpleNamespace(first=True),
        carried_out=lambda: clips,
    )
    is_fitted = Pipeline.robot.func(pipeline).kinematics != robot.kinematics
    assert is_fitted == (extra_data or records_what_is_done)
    pipeline.suite.robot = moved_gripper(Kinematics())  # exact: nothing to fit
    assert Pipeline.robot.func(pipeline) is pipeline.suite.robot
