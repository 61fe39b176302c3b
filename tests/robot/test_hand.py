"""A camera on the hand sees the world from where the hand is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.robot.hand import cameras_after, drawn_poses
from worldenv.robot.kinematics import Kinematics, rotation
from worldenv.robot.robot import Robot, moved_gripper
from worldenv.suites.tabletop.suite import TabletopSuite

VIEWS = ("agentview", "wrist")


def matrix(axis_angle):  # by Rodrigues' formula
    angle = np.linalg.norm(axis_angle)
    x, y, z = axis_angle / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def frame(pose):  # the hand's coordinates to the world's, 4 x 4
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = matrix(pose[3:6]), pose[:3]
    return out


def drawn(seed, *shape):
    size = np.array([0.3] * 3 + [2.0] * 3 + [1.0])
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 7)) * size


def test_poses_are_drawn_with_the_axes_of_the_gripper():
    poses = torch.from_numpy(drawn(2, 9)).float()
    turn = math.pi / math.sqrt(2)
    robot = moved_gripper(Kinematics())
    assert drawn_poses(poses, robot) is poses
    found = drawn_poses(poses, replace(robot, gripper_turn=(turn, turn, 0.0)))
    assert torch.equal(found[:, [0, 1, 2, 6]], poses[:, [0, 1, 2, 6]])
    hand, axes = rotation(poses[:, 3:6]), rotation(found[:, 3:6])
    for column, wanted in ((0, hand[..., 1]), (1, hand[..., 0]), (2, -hand[..., 2])):
        np.testing.assert_allclose(axes[..., column], wanted, atol=1e-6)
    assert torch.equal(drawn_poses(poses[4:5], replace(robot, gripper_turn=(turn, turn, 0.0)))[0], found[4])


@pytest.mark.parametrize("turn", [(0.0, 1.0), (0.0, 0.0, float("nan")), [0.0, 0.0, 0.0]])
def test_a_turn_of_the_gripper_is_three_numbers(turn):
    with pytest.raises(UserError, match="gripper_turn of a robot is .* three numbers"):
        replace(moved_gripper(Kinematics()), gripper_turn=turn)


def test_rotations_are_those_of_rodrigues():
    turns = drawn(0, 20)[:, 3:6]
    found = rotation(torch.from_numpy(turns)).numpy()
    np.testing.assert_allclose(found, [matrix(turn) for turn in turns], atol=1e-12)
    assert torch.equal(rotation(torch.zeros(3)), torch.eye(3, dtype=torch.float64))


def test_camera_moves_with_the_hand_and_the_other_stands_still():
    rng, (b, k) = np.random.default_rng(1), (3, 5)
    fixed = rng.normal(size=(b, 3, 4))  # K [R | t] from the hand's coordinates
    pose, poses = drawn(2, b), drawn(3, b, k)
    wrist = np.stack([fixed[i] @ np.linalg.inv(frame(pose[i])) for i in range(b)])
    camera = torch.from_numpy(np.stack([rng.normal(size=(b, 3, 4)), wrist], axis=1)).float()
    given = torch.from_numpy(pose).float(), torch.from_numpy(poses).float()
    found = cameras_after(camera, *given, VIEWS, VIEWS[1:])
    assert found.shape == (b, k, 2, 3, 4) and found.dtype == torch.float32
    expected = np.stack([[fixed[i] @ np.linalg.inv(frame(poses[i, j])) for j in range(k)] for i in range(b)])
    np.testing.assert_allclose(found[:, :, 1], expected, atol=1e-5)
    assert torch.equal(found[:, :, 0], camera[:, None, 0].expand(b, k, 3, 4))
    later = cameras_after(found[:, 1], given[1][:, 1], given[1][:, 2:], VIEWS, VIEWS[1:])  # from a moment on the way
    torch.testing.assert_close(later, found[:, 2:], rtol=0, atol=2e-5)


def test_without_a_camera_on_the_hand_nothing_is_computed():
    camera, pose = torch.zeros(2, 1, 3, 4), torch.zeros(2, 7)
    assert cameras_after(None, pose, pose[:, None], ("wrist",), ("wrist",)) is None
    assert cameras_after(camera, pose, pose[:, None], ("agentview",), ("wrist",)) is None
    assert moved_gripper(Kinematics()).hand_views == ()


def test_above_which_height_a_gripper_touches_nothing_is_known_only_where_it_is_given():
    assert moved_gripper(Kinematics()).clear_m is None and TabletopSuite(16).robot.clear_m == 0.06


@pytest.mark.parametrize(
    ("proprio", "views", "message"),
    [
        (7, "wrist", "hand_views of a robot is 'wrist'; it should be a tuple of names of views"),
        (7, (1,), r"hand_views of a robot is \(1,\)"),
        (3, ("wrist",), r"proprioception has 3 numbers; it should begin with 6, x, y, z \(m\) and axis-angle"),
    ],
)
def test_robots_without_a_pose_or_names_of_views_are_refused(proprio, views, message):
    with pytest.raises(UserError, match=message):
        Robot(("a",) * proprio, ("b",), (0.0,) * proprio, (1.0,) * proprio, hand_views=views)
