"""The errors of kinematics when the hand closes: none where they are exact, and those of an arm that moves less."""

import closing_error
import numpy as np
import pytest

from worldenv.data.clips import Clips
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS


@pytest.fixture(scope="module")
def clips():
    return Clips.of(demonstrate(TASKS[:3], range(3), "train"))


def test_exact_kinematics_are_never_off(clips):
    away, episode, closes = closing_error.deviations(clips, moved_gripper(Kinematics()))
    assert np.abs(away).max() < 0.01 and {*episode.tolist()} == {0, 1, 2}
    assert 0 < closes.sum() < len(closes) == (clips.length - closing_error.STEPS + 1).sum()


def test_an_arm_that_is_thought_to_move_too_far_is_off_by_what_it_moves_too_far(clips):
    away, episode, _ = closing_error.deviations(clips, moved_gripper(Kinematics(translation_step=0.07)))
    step = np.concatenate([np.arange((episode == e).sum()) for e in range(3)])
    true = clips.proprio[episode, step + 1, :2] - clips.proprio[episode, step, :2]
    assert np.abs(away[:, 0, :2] - 100 * true.numpy()).max() < 0.01  # cm; in x and y, which have no limit nearby
    found = closing_error.summary(away)
    assert found["after_2"] < found["after_4"] < found["after_8"] and found["stretches"] == len(away)
