import math

import pytest
import torch

from worldenv.kernels.action_map import action_map
from worldenv.ops.action_map import Gripper, action_map_reference

# A camera 0.8 m in front of the origin and 0.4 m above it, looking down at it.
LOOK = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.4, 0.0, -0.9, 0.1], [-0.9, 0.0, -0.4, 0.9]])


GRIPPER = Gripper()


def inputs(draw, device, b, height, width, v=1, p=7):  # every episode and view has its own camera
    poses = draw(b, p)
    poses[:, :7] *= torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 0.3], device=device)
    poses[:, 2] += 0.15
    poses[:, 7:] = math.nan
    focal = 1.2 * height
    projection = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]) @ LOOK
    shift = draw(b, v, 3, 1) * torch.tensor([[height / 10], [height / 10], [0.0]], device=device)
    projection = projection.to(device)
    return poses, projection + shift * projection[2], GRIPPER, height, width


def assert_drawn_alike(actual, expected):
    # A stroke ends at exp(-8), where rounding may put a pixel on either side.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=4e-4)
    assert ((actual > 0) == (expected > 0)).float().mean() > 0.999


@pytest.mark.parametrize(
    ("b", "v", "p", "height", "width"), [(1, 1, 7, 8, 8), (3, 2, 9, 33, 21), (2, 3, 8, 48, 64), (2, 1, 7, 64, 64)]
)
def test_face_equals_the_reference(draw, device, b, v, p, height, width):
    arguments = inputs(draw, device, b, height, width, v, p)
    actual, expected = action_map(*arguments), action_map_reference(*arguments)
    assert (expected.amax((3, 4)) > 0.3).float().mean() > 0.5  # something is drawn
    assert_drawn_alike(actual, expected)


def test_another_gripper_is_drawn_as_the_reference_does(draw, device):
    poses, camera, _, *size = inputs(draw, device, 2, 32, 48, v=2)
    other = Gripper(tip_closed_m=0.02, tip_opening_m=0.06, finger_m=0.03, hand_half_m=0.08, tool_m=0.2)
    actual = action_map(poses, camera, other, *size)
    assert_drawn_alike(actual, action_map_reference(poses, camera, other, *size))
    assert not torch.allclose(actual, action_map(poses, camera, GRIPPER, *size))


@pytest.mark.parametrize("turn", [-1.1, 0.0, 0.4, 2.0])  # about the world's z axis
@pytest.mark.parametrize("length", [math.pi - 1e-3, math.pi, math.pi + 1e-3])
def test_gripper_that_looks_down_is_drawn_as_a_rotation_matrix_says(draw, device, length, turn):
    _, camera, *others = inputs(draw, device, 1, 48, 64)
    x, y = length * math.cos(turn / 2), length * math.sin(turn / 2)
    pose = torch.tensor([[0.02, -0.01, 0.15, x, y, 0.0, 0.5]], device=device)
    turned = torch.linalg.matrix_exp(torch.tensor([[0, 0, y], [0, 0, -x], [-y, x, 0]], dtype=torch.float64))
    p, closing, up = torch.tensor([0.02, -0.01, 0.15]), turned[:, 0].float(), turned[:, 2].float()
    drawn = action_map(pose, camera, *others).cpu()[0, 0]
    tips = p + 0.0285 * closing, p - 0.0285 * closing
    for channel, point in (
        (0, p + 0.06 * up),
        (0, p + 0.2 * up),
        (1, tips[0]),
        (1, tips[1] + 0.05 * up),
        (2, p + 0.05 * up),
    ):
        u, v, w = (camera[0, 0].cpu() @ torch.cat([point, torch.ones(1)])).tolist()
        assert drawn[channel, int(v / w), int(u / w)] > 0.75
    assert_drawn_alike(drawn, action_map_reference(pose, camera, *others).cpu()[0, 0])


def test_pose_without_rotation_and_one_behind_the_camera_are_drawn_as_the_reference_does(draw, device):
    poses, *others = inputs(draw, device, 2, 32, 32)
    poses[0, 3:6] = 0
    poses[1, 0] = 2.0
    assert_drawn_alike(action_map(poses, *others), action_map_reference(poses, *others))


def test_stroke_that_passes_the_camera_is_cut(device):
    above = torch.tensor(
        [[40.0, 0.0, -16.0, 6.4], [0.0, 40.0, -16.0, 6.4], [0.0, 0.0, -1.0, 0.4]], device=device
    ).expand(1, 1, 3, 4)
    poses = torch.tensor([[0.02, -0.01, 0.1, 0.0, 0.0, 0.0, 0.5]], device=device)  # the tool reaches up to 0.5 m
    actual = action_map(poses, above, GRIPPER, 32, 32)
    assert actual[0, 0, 0].max() > 0.9
    assert_drawn_alike(actual, action_map_reference(poses, above, GRIPPER, 32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pose_that_is_not_finite_draws_nothing_and_leaves_the_others_alone(draw, device, value):
    poses, *others = inputs(draw, device, 3, 16, 16)
    clean = action_map(poses, *others)
    poses[1, 4] = value
    drawn = action_map(poses, *others)
    assert not drawn[1].any() and torch.equal(drawn[::2], clean[::2])


def test_no_pose_gives_no_picture(draw, device):
    assert action_map(draw(0, 7), draw(0, 2, 3, 4), GRIPPER, 8, 9).shape == (0, 2, 4, 8, 9)
