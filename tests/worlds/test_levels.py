"""What both world models refuse: noise levels that lead nowhere, and robots that they cannot imagine."""

from dataclasses import replace
from pathlib import Path

import pytest

from worldenv.errors import UserError
from worldenv.records.checkpoint import CheckpointError
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.world import ComposerWorld
from worldenv.worlds.levels import check_levels, levels_of

ROBOT = moved_gripper(Kinematics(), clear_m=CLEAR_M)


@pytest.fixture(params=["composer", "causal"])
def make(tiny, request):
    if request.param == "composer":
        return lambda robot, levels: ComposerWorld(tiny.simulator(), robot, levels)
    network = CausalNetwork(CausalConfig(image_size=16, width=32, layers=1, heads=2, key_heads=1, channels=4))
    return lambda robot, levels: CausalWorld(network, robot, levels)


@pytest.mark.parametrize(
    "levels",
    [
        (),
        (0.5,),
        (1.0, 1.0),
        (1.0, 0.0),
        (1.0, 0.5, 0.7),
        (float("nan"),),
        (1.0, float("nan")),
        (True, 0.5),
        ("1.0",),
        1.0,
        None,
        [1 - i / 2000 for i in range(1001)],
    ],
)
def test_levels_that_lead_nowhere_are_refused(make, levels):
    with pytest.raises(UserError, match="levels is .*; they should begin with 1.0 and fall, all above 0"):
        make(ROBOT, levels)


@pytest.mark.parametrize("levels", [None, 1.0, "1.0", ["a"], {}, [None], [1 - i / 300 for i in range(300)]])
def test_levels_that_are_no_numbers_or_too_many_are_refused_by_the_name_of_the_file(levels):
    with pytest.raises(CheckpointError, match="^a.safetensors: levels is .* they should begin .* at most 251"):
        levels_of(Path("a.safetensors"), {"levels": levels})
    assert levels_of(Path("a.safetensors"), {"levels": [1, 0.5]}) == (1, 0.5)


def test_levels_that_fall_from_one_are_taken(make):
    assert check_levels([1.0, 0.5]) == make(ROBOT, [1.0, 0.5]).levels == (1.0, 0.5)


@pytest.mark.parametrize("missing", ["kinematics", "gripper"])
def test_robot_without_kinematics_or_gripper_is_refused(make, missing):
    with pytest.raises(UserError, match="needs a robot with kinematics.* gripper.*; choose another"):
        make(replace(ROBOT, **{missing: None}), (1.0,))


def test_world_says_what_it_takes(make):
    world = make(ROBOT, (1.0,))
    assert world.size == (16, 16) and world.views == ("agentview",) and world.chunk == 4 and world.robot is ROBOT
