import pytest
import torch

from worldenv.camera import tabletop_camera
from worldenv.simulator.transport import moves, transport

SIZE = 64
CAMERA = tabletop_camera(SIZE)
PROJECTION = torch.from_numpy(CAMERA.projection)


def pose(x, y, z):
    return torch.tensor([x, y, z, 0.0, 0.0, 0.0, 1.0])


def spot(point):  # a frame with one bright Gaussian spot where the camera sees the point
    (u, v), _ = CAMERA.project(torch.tensor(point).numpy())
    rows, columns = torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5
    return torch.exp(-((rows[:, None] - v) ** 2 + (columns[None, :] - u) ** 2) / 8).expand(3, SIZE, SIZE)


def centre(frame):  # (u, v) of the brightness
    weight = frame[0] / frame[0].sum()
    at = torch.arange(SIZE) + 0.5
    return torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()])


def test_what_is_at_the_fingertips_goes_with_them_from_any_pose_to_any_later_one():
    places = [(0.02, 0.0, 0.05), (0.08, 0.05, 0.1), (-0.06, 0.1, 0.03), (0.0, -0.05, 0.06)]
    poses = torch.stack([pose(*place) for place in places])[None]
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert moves(3) == len(pairs)
    for begin in range(3):
        moved = transport(spot(places[begin])[None], poses, PROJECTION)[0]
        for frame, (i, j) in zip(moved, pairs, strict=True):
            if i == begin:
                seen, _ = CAMERA.project(torch.tensor(places[j]).numpy())
                assert torch.allclose(centre(frame), torch.from_numpy(seen).float(), atol=0.3), (i, j)


def test_a_gripper_that_stays_leaves_the_frame_as_it_was():
    frame = torch.rand(2, 3, SIZE, SIZE)
    poses = pose(0.05, 0.02, 0.08).expand(2, 5, 7)
    moved = transport(frame, poses, PROJECTION)
    torch.testing.assert_close(moved, frame[:, None].expand(-1, 10, -1, -1, -1), rtol=0, atol=1e-4)


def test_what_comes_nearer_grows_and_keeps_its_brightness():
    poses = torch.stack([pose(0, 0, 0.0), pose(0, 0, 0.15)])[None]
    before = spot((0, 0, 0.0))
    after = transport(before[None], poses, PROJECTION)[0, 0]
    assert after[0].sum() > 1.2 * before[0].sum()
    assert after.max().item() == pytest.approx(before.max().item(), abs=0.03)


def test_beyond_the_frame_the_border_is_repeated():
    frame = torch.zeros(1, 3, SIZE, SIZE)
    frame[..., 0] = 1.0  # the left column
    poses = torch.stack([pose(0, 0, 0.0), pose(0.06, 0, 0.0)])[None]  # to the right
    moved = transport(frame, poses, PROJECTION)[0, 0]
    torch.testing.assert_close(moved[..., :5], torch.ones(3, SIZE, 5))
    assert moved[..., -20:].abs().max() < 1e-6


def test_small_things_stay_sharp_when_they_are_moved_again_and_again():
    frame, there = spot((0.0, 0.0, 0.02))[None], True
    for _ in range(10):  # there and back, a fraction of a pixel each time
        ends = [pose(0, 0, 0.02), pose(0.013, 0.009, 0.02)]
        frame = transport(frame, torch.stack(ends if there else ends[::-1])[None], PROJECTION)[:, 0]
        there = not there
    assert (frame - spot((0.0, 0.0, 0.02))).abs().max() < 0.05
