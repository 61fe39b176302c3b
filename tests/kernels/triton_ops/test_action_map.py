import pytest
import torch

from worldenv.kernels.action_map import action_map
from worldenv.ops.action_map import action_map_reference

# A camera 0.8 m in front of the origin and 0.4 m above it, looking down at it.
LOOK = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.4, 0.0, -0.9, 0.1], [-0.9, 0.0, -0.4, 0.9]])


def inputs(draw, device, b, height, width):
    proprio = draw(b, 7) * torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 0.3], device=device)
    proprio[:, 2] += 0.15
    focal = 1.2 * height
    projection = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]) @ LOOK
    return proprio, projection.to(device), height, width


def assert_drawn_alike(actual, expected):
    # A stroke ends at exp(-8), where rounding may put a pixel on either side.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=4e-4)
    assert ((actual > 0) == (expected > 0)).float().mean() > 0.999


@pytest.mark.parametrize(("b", "height", "width"), [(1, 8, 8), (3, 33, 21), (2, 64, 64)])
def test_face_equals_the_reference(draw, device, b, height, width):
    arguments = inputs(draw, device, b, height, width)
    actual, expected = action_map(*arguments), action_map_reference(*arguments)
    assert (expected.amax((2, 3)) > 0.3).float().mean() > 0.5  # something is drawn
    assert_drawn_alike(actual, expected)


def test_pose_without_rotation_and_one_behind_the_camera_are_drawn_as_the_reference_does(draw, device):
    proprio, *others = inputs(draw, device, 2, 32, 32)
    proprio[0, 3:6] = 0
    proprio[1, 0] = 2.0
    assert_drawn_alike(action_map(proprio, *others), action_map_reference(proprio, *others))


def test_stroke_that_passes_the_camera_is_cut(device):
    above = torch.tensor([[40.0, 0.0, -16.0, 6.4], [0.0, 40.0, -16.0, 6.4], [0.0, 0.0, -1.0, 0.4]], device=device)
    proprio = torch.tensor([[0.02, -0.01, 0.1, 0.0, 0.0, 0.0, 0.5]], device=device)  # the tool reaches up to 0.5 m
    actual = action_map(proprio, above, 32, 32)
    assert actual[0, 0].max() > 0.9
    assert_drawn_alike(actual, action_map_reference(proprio, above, 32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pose_that_is_not_finite_draws_nothing_and_leaves_the_others_alone(draw, device, value):
    proprio, *others = inputs(draw, device, 3, 16, 16)
    clean = action_map(proprio, *others)
    proprio[1, 4] = value
    drawn = action_map(proprio, *others)
    assert not drawn[1].any() and torch.equal(drawn[::2], clean[::2])


def test_no_pose_gives_no_picture(draw, device):
    assert action_map(draw(0, 7), draw(3, 4), 8, 9).shape == (0, 4, 8, 9)
