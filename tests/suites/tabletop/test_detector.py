"""The detector finds what lies on the table, where the physics says it is, and nothing else."""

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.suites.tabletop.detector import BACKGROUND, MOVABLE, PALETTE, nearest_color
from worldenv.suites.tabletop.scenes import COLORS, TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

MEAN_HALF_HEIGHT_M = 0.02


@pytest.fixture(scope="module")
def begun():
    """Three starts of every task: suite, tasks, what the detector finds in the first frame."""
    suite, tasks = TabletopSuite(), TASKS * 3
    seen = suite.reset(tasks, range(len(tasks)), "train").seen
    return suite, tasks, suite.find_things(seen.frames.numpy()[:, None], tasks)


def test_things_are_where_the_physics_has_them(begun):
    suite, tasks, found = begun
    entities = suite.physics.state()[:, 15:].reshape(len(tasks), -1, 8)
    known = 0
    for row, task in enumerate(tasks):
        for item, entity in zip(task.items, entities[row], strict=False):
            look = COLORS.index(item.color)
            if item.kind not in MOVABLE or not found.known[row, look]:
                continue
            pixel, _ = suite.physics.camera.project(entity[2:5] + [0, 0, MEAN_HALF_HEIGHT_M])
            assert found.area[row, 0, look].sum() > 12
            if found.area[row, 0, look, 1] == 0:  # nothing stands before it
                assert np.abs(found.centre[row, 0, look, 0] - pixel).max() < 3
                known += 1
    assert known > 60


def test_what_a_colour_cannot_tell_is_left_out(begun):
    _, tasks, found = begun
    white = COLORS.index("white")
    assert not found.known[:, white].any()  # the hand is white
    left_out = {task.name for task, aim in zip(tasks, found.aim, strict=True) if aim < 0}
    assert left_out == {"white-can-in-tray"}
    for task, known, aim in zip(tasks, found.known, found.aim, strict=True):
        movable = [item.color for item in task.items if item.kind in MOVABLE and item.color != "white"]
        assert {COLORS[look] for look in np.flatnonzero(known)} == set(movable)
        assert aim < 0 or COLORS[aim] == task.items[task.object].color


def test_two_things_of_one_colour_are_left_out():
    suite = TabletopSuite()
    task = TASKS[0]
    twins = type(task)("twins", task.family, (*task.items[:2], task.items[0], *task.items[3:]), 0, 3)
    found = suite.find_things(np.zeros((1, 1, 1, 64, 64, 3), dtype=np.uint8), [twins])
    assert COLORS[np.flatnonzero(found.known[0])[0]] == "blue" and found.known.sum() == 1 and found.aim[0] == -1


def test_colours_are_told_in_any_light_and_the_background_is_none():
    light = np.linspace(0.55, 1.05, 9)[:, None, None]
    palette = (np.array(PALETTE) * light).clip(0, 255).astype(np.uint8)
    assert (nearest_color(palette) == np.arange(len(PALETTE)) + 1).all()
    assert not nearest_color((np.array(BACKGROUND) * light).astype(np.uint8)).any()
    assert not nearest_color(np.full((1, 3), 100, dtype=np.uint8)).any()  # a grey is no white


@pytest.mark.parametrize("shape", [(2, 1, 1, 8, 8, 3), (1, 1, 8, 8, 3), (1, 1, 1, 8, 8, 4)])
def test_frames_of_another_kind_are_refused(shape):
    with pytest.raises(UserError, match="it should be uint8"):
        TabletopSuite().find_things(np.zeros(shape, dtype=np.uint8), TASKS[:1])
