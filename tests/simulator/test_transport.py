import torch

from worldenv.camera import tabletop_camera
from worldenv.simulator.transport import transport

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


def test_what_is_at_the_fingertips_arrives_where_they_go():
    begin, ends = (0.02, 0.0, 0.05), [(0.08, 0.05, 0.1), (-0.06, 0.1, 0.03), (0.0, -0.05, 0.06)]
    poses = torch.stack([pose(*begin), *(pose(*end) for end in ends)])[None]
    moved = transport(spot(begin)[None], poses, PROJECTION)[0]
    for frame, end in zip(moved, ends, strict=True):
        seen, _ = CAMERA.project(torch.tensor(end).numpy())
        assert torch.allclose(centre(frame), torch.from_numpy(seen).float(), atol=0.3)


def test_a_gripper_that_stays_leaves_the_frame_as_it_was():
    frame = torch.rand(2, 3, SIZE, SIZE)
    poses = pose(0.05, 0.02, 0.08).expand(2, 5, 7)
    torch.testing.assert_close(transport(frame, poses, PROJECTION), frame[:, None].expand(-1, 4, -1, -1, -1))


def test_what_comes_nearer_grows():
    poses = torch.stack([pose(0, 0, 0.0), pose(0, 0, 0.15)])[None]
    moved = transport(spot((0, 0, 0.0))[None], poses, PROJECTION)[0, 0]
    assert moved[0].sum() > 1.2 * spot((0, 0, 0.0))[0].sum()
