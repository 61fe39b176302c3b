"""How far a stopped gripper slides is found in recordings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.robot.fit_slide import LEAST_CHUNKS, with_slide
from worldenv.robot.fitted import FittedKinematics

PLAIN = FittedKinematics(0.02 * np.eye(7), 0.01 * np.eye(7), 0.3 * np.eye(7), (0.0,) * 7, (0.0, 1.0))
FLOOR = 0.3  # m
STEPS = 30


def recorded(kinematics, episodes, floor=FLOOR, opening=0.9, seed=0):
    """Episodes of an arm that goes down with an open or closed gripper, and sideways at random; a floor stops it."""
    draw = torch.Generator().manual_seed(seed)
    actions = 2 * torch.rand(episodes, STEPS, 7, generator=draw) - 1
    actions[..., 2], actions[..., 6] = -actions[..., 2].abs(), 1.0 if opening < 0.5 else -1.0
    pose = torch.tensor([0.1, 0.1, 0.5, 0.0, 0.0, 0.0, opening]).repeat(episodes, 1)
    poses, _ = kinematics.follow(pose, kinematics.rest(pose), actions, torch.full((episodes,), floor))
    return [(p.numpy(), a.numpy()) for p, a in zip(torch.cat([pose[:, None], poses], dim=1), actions, strict=True)]


def test_the_slide_of_an_arm_that_a_floor_stops_is_found():
    sliding = replace(PLAIN, slide=(0.4, -0.1))
    found = with_slide(PLAIN, recorded(sliding, 40))
    assert found.slide == pytest.approx(sliding.slide, abs=1e-3) and replace(found, slide=None) == PLAIN
    assert with_slide(PLAIN, recorded(PLAIN, 40)).slide == pytest.approx((0, 0), abs=1e-3)


@pytest.mark.parametrize(("floor", "opening"), [(-9.0, 0.9), (FLOOR, 0.1)])
def test_without_chunks_in_which_an_open_gripper_is_stopped_nothing_is_fitted(floor, opening):
    assert with_slide(PLAIN, recorded(replace(PLAIN, slide=(0.4, 0.0)), 40, floor, opening)) is PLAIN


def test_few_chunks_are_not_enough():
    episodes = recorded(replace(PLAIN, slide=(0.4, 0.0)), 40)
    few = LEAST_CHUNKS // (STEPS // 4) - 1  # not more than STEPS // 4 chunks of an episode
    assert with_slide(PLAIN, episodes[:few]) is PLAIN and with_slide(PLAIN, episodes) is not PLAIN
    assert with_slide(PLAIN, []) is PLAIN and with_slide(PLAIN, [(p[:3], a[:2]) for p, a in episodes]) is PLAIN
