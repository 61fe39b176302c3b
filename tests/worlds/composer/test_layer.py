"""The layer: windows into a picture, and when and how far a thing goes with the gripper."""

import pytest
import torch

from worldenv.robot.camera import tabletop_camera
from worldenv.worlds.composer.layer import SIZE, attempts, carried, holding, in_window, project, unwindow, window

POINTS = torch.tensor([[0.0, 0.0, 0.02], [0.07, 0.05, 0.1], [-0.06, 0.1, 0.0]])


def cameras(n, size=64):
    return torch.from_numpy(tabletop_camera(size).projection).expand(n, 3, 4)


def spots(points, camera, size, radius_px):  # [B, size, size], 1 in the middle, smooth
    place, _ = project(points, camera)
    pixel = torch.arange(size) + 0.5
    squared = (pixel - place[:, :1])[:, None, :] ** 2 + (pixel - place[:, 1:])[:, :, None] ** 2
    return torch.exp(squared / (-2 * radius_px**2))


@pytest.mark.parametrize("size", [64, 48, 256])
def test_window_that_is_put_back_shows_what_the_picture_showed(size):
    camera, radius = cameras(3, size), size / 16
    picture = spots(POINTS, camera, size, radius)
    seen = window(picture[..., None], camera, POINTS)[:, 0]
    assert seen.shape == (3, SIZE, SIZE)
    back = unwindow(seen[:, None], camera, POINTS, (size, size))[:, 0]
    assert (back - picture).abs().max() < 0.05 and back.sum() == pytest.approx(picture.sum().item(), rel=0.03)
    again = window(back[..., None], camera, POINTS)[:, 0]
    torch.testing.assert_close(again, seen, rtol=0, atol=0.05)


def test_outside_of_its_window_nothing_is_put_back():
    camera = cameras(3)
    covered = unwindow(torch.ones(3, 1, SIZE, SIZE), camera, POINTS, (64, 64))[:, 0]
    place, _ = project(POINTS, camera)
    across = (covered > 0.5).any(1).sum(1)
    assert covered.min() == 0 and (across - 30 < 5).all() and (across > 20).all()  # of 64: 19 cm
    assert [covered[i, int(y), int(x)].item() for i, (x, y) in enumerate(place.tolist())] == pytest.approx([1.0] * 3)


def test_points_are_in_a_window_where_it_shows_them():
    camera, beside = cameras(3), POINTS + torch.tensor([0.02, -0.04, 0.01])
    place = in_window(beside[:, None], camera, POINTS)[:, 0]
    seen = window(spots(beside, camera, 64, 2.0)[..., None], camera, POINTS)[:, 0]
    offset = torch.arange(SIZE) - (SIZE - 1) / 2
    area = seen.sum((1, 2))
    middle = torch.stack([(seen.sum(1) * offset).sum(1), (seen.sum(2) * offset).sum(1)], dim=1) / area[:, None]
    torch.testing.assert_close(place, middle, rtol=0, atol=0.1)
    assert place.abs().min() > 1 and (in_window(POINTS[:, None], camera, POINTS) == 0).all()


def test_window_of_a_picture_that_is_moved_shows_there_what_was_here():
    camera, there = cameras(3), POINTS + torch.tensor([-0.05, 0.04, 0.06])
    picture = spots(POINTS, camera, 64, 3.0)[..., None]
    here = window(picture, camera, POINTS)
    torch.testing.assert_close(window(picture, camera, there, (POINTS, there)), here, rtol=0, atol=1e-4)
    assert (window(picture, camera, there) - here).abs().max() > 0.5


def poses(*openings, way=(0.0, 0.0, 0.0)):  # [1, K + 1, 7], the gripper moves by `way` in each step
    out = torch.zeros(1, len(openings), 7)
    out[0, :, :3] = torch.arange(len(openings))[:, None] * torch.tensor(way)
    out[0, :, 6] = torch.tensor(openings)
    return out


def held_after(openings, grasps, held=False):
    grasps = torch.tensor([grasps], dtype=torch.bool)
    return holding(grasps, poses(*openings), torch.tensor([held]))[0].int().tolist()


def test_fingers_that_close_half_way_or_further_can_grasp():
    assert attempts(poses(1, 0.4, 0, 0, 0))[0].tolist() == [True, True, False, False]
    assert attempts(poses(1, 0.8, 0.6, 0.5, 0.5))[0].tolist() == [False, False, True, False]
    assert attempts(poses(0, 0.3, 0.6, 1, 0.7))[0].tolist() == [False] * 4


def test_a_thing_is_held_from_the_first_grasp_while_the_fingers_close_or_after_it():
    assert held_after((1, 0.4, 0, 0, 0), (1, 1, 1, 1)) == [0, 1, 1, 1, 1]
    assert held_after((1, 0.4, 0, 0, 0), (0, 1, 0, 0)) == [0, 0, 1, 1, 1]
    assert held_after((1, 0.4, 0, 0, 0), (0, 0, 1, 0)) == [0, 0, 0, 1, 1]
    assert held_after((1, 0.4, 0, 0, 0), (0, 0, 0, 0)) == [0] * 5
    assert held_after((1, 1, 0.9, 0.8, 0.7), (1, 1, 1, 1)) == [0] * 5  # nothing is closed yet
    assert held_after((0.2, 0.2, 0.2, 0.2, 0.2), (1, 1, 1, 1)) == [0] * 5  # closed, and nothing closes


def test_closing_in_two_steps_may_grasp_in_the_second_chunk():
    first, second = (1, 1, 1, 1, 0.5), (0.5, 0.1, 0.0, 0.0, 0.0)
    assert held_after(first, (0, 0, 0, 0)) == [0] * 5
    assert held_after(second, (1, 1, 1, 1)) == [0, 1, 1, 1, 1]
    assert held_after(first, (0, 0, 0, 1)) == [0, 0, 0, 0, 1]
    assert held_after(second, (0, 0, 0, 0), held=True) == [1] * 5  # from chunk to chunk it needs no second grasp


def test_what_is_held_is_let_go_when_the_fingers_open_and_can_be_grasped_again():
    assert held_after((0, 0, 0, 0, 0), (0, 0, 0, 0), held=True) == [1] * 5
    assert held_after((0, 0.3, 0.5, 0.6, 1), (1, 1, 1, 1), held=True) == [1, 1, 1, 0, 0]
    assert held_after((0, 0.7, 0.4, 0, 0), (0, 0, 0, 0), held=True) == [1, 0, 0, 0, 0]
    assert held_after((0, 0.7, 0.4, 0, 0), (0, 0, 1, 0), held=True) == [1, 0, 0, 1, 1]


def carried_by(held, way=(0.01, 0.0, -0.02)):
    out = carried(poses(*[0.0] * len(held), way=way), torch.tensor([held], dtype=torch.bool))
    return (out[0] / torch.tensor([w or 1.0 for w in way])).round(decimals=4)[:, [0, 2]].tolist()


@pytest.mark.parametrize(
    ("held", "steps"),
    [
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
        ((1, 1, 1, 1, 1), (0, 1, 2, 3, 4)),
        ((0, 1, 1, 1, 1), (0, 0, 1, 2, 3)),  # the step that grasps carries nothing
        ((1, 1, 0, 0, 0), (0, 1, 1.25, 1.25, 1.25)),
        ((1, 0, 0, 1, 1), (0, 0.25, 0.25, 0.25, 1.25)),
    ],
)
def test_a_thing_goes_with_the_gripper_while_it_is_held_and_a_quarter_of_the_step_that_lets_go(held, steps):
    assert carried_by(held) == [[n, n] for n in steps]
