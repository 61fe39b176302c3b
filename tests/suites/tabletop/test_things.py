"""The labels that true states give: where things are, and which pixels each of them covers."""

import numpy as np
import pytest

from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.physics import Tabletop, start_state
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.things import HELD, TabletopThings, act_out, centres, coverage, movable, occlusion


@pytest.fixture(scope="module")
def start():  # the first task's, with the gripper away
    return start_state(TASKS[0], 3, "train")[0][None]


def object_of(state):
    return state[:, 13].astype(int)


def test_actions_that_are_acted_out_again_lead_through_the_same_poses():
    shown = demonstrate(TASKS[:2], [1, 2], "validation", image_size=16)
    assert len(shown) == 2
    for trajectory in shown:
        states = act_out([trajectory.task], [trajectory.start], "validation", trajectory.actions[None])
        assert states.shape == (1, len(trajectory.proprio), 79)
        assert np.array_equal(states[0, :, :7].astype(np.float32), trajectory.proprio)


def test_centres_are_in_the_middle_of_things_and_only_some_things_can_be_moved(start):
    thing, row = object_of(start), start[0, 15:].reshape(8, 8)[object_of(start)[0]]
    assert centres(start)[0, thing[0]] == pytest.approx([row[2], row[3], row[4] + row[7] / 2])
    kinds = start[0, 15::8]
    assert np.array_equal(movable(start)[0], (kinds >= 1) & (kinds <= 3)) and 0 < movable(start).sum() < 8


def test_a_thing_covers_the_pixels_that_change_where_it_is_taken_away_and_no_others(start):
    state, thing = start.copy(), object_of(start)
    state[:, :3] = 0.19, 0.21, 0.2
    covered = coverage(state, thing, 64)[0]
    assert covered.shape == (64, 64) and covered.dtype == np.uint8 and covered.max() == 255
    env = Tabletop(64)
    env.reset([TASKS[0]], [0], "train")
    env.restore(state)
    shown = env.frames()[0].astype(int)
    state[0, 15 + 8 * thing[0] + 2] += 0.01
    env.restore(state)
    apart = np.abs(env.frames()[0] - shown).sum(-1)
    moved = coverage(state, thing, 64)[0]
    assert not apart[(covered == 0) & (moved == 0)].max() > 30  # what changes as it moves is where it was, or is
    middle = [(np.nonzero(mask)[1]).mean() for mask in (covered, moved)]
    assert 1 < middle[1] - middle[0] < 2.5  # a centimetre


def test_what_hides_a_thing_does_not_count(start):
    thing, hidden = object_of(start), start.copy()
    hidden[:, :3], hidden[:, 6] = centres(start)[0, thing[0]] + np.array([0, -0.03, 0.02]), 0  # closed, before it
    frames = []
    for state in (start, hidden):
        env = Tabletop(64)
        env.reset([TASKS[0]], [0], "train")
        env.restore(state)
        frames.append(env.frames()[0].astype(int))
    covered = coverage(start, thing, 64)
    changed = np.abs(frames[0] - frames[1]).sum(-1) > 100
    assert (changed & (covered[0] == 255)).sum() > 5  # it does hide some of it
    assert np.array_equal(coverage(hidden, thing, 64), covered)


def behind(start, gap):
    """Two things of the scene, one of them as many metres behind the other; a third of them is far away."""
    state, thing = start.copy(), np.nonzero(movable(start)[0])[0][:2]
    rows = state[0, 15:].reshape(8, 8)
    rows[:, 2] = 5.0
    rows[thing, 2], rows[thing, 4], rows[thing, 6:] = 0.0, 0.0, (0.018, 0.04)
    rows[thing, 3] = 0.0, gap
    return state, thing


def test_a_thing_behind_another_is_hidden_as_far_as_the_other_stands_before_it(start):
    state, (front, back) = behind(start, 0.04)
    is_there, hidden = (part[0] for part in occlusion(state, np.array([back]), 64))
    env = Tabletop(64)
    env.reset([TASKS[0]], [0], "train")
    frames = []
    for colours in ((1, 2), (7, 2), (1, 7)):  # of front and back
        state[0, 16 + 8 * front], state[0, 16 + 8 * back] = colours
        state[:, :3] = 0.19, 0.21, 0.2
        env.restore(state)
        frames.append(env.frames()[0].astype(int))
    shows_front, shows_back = (np.abs(frames[0] - frame).sum(-1) > 300 for frame in frames[1:])
    assert (hidden[shows_front & is_there] > 200).all() and (shows_front & is_there).sum() > 4
    assert (hidden[shows_back] < 55).all() and is_there[shows_back].all() and shows_back.sum() > 10
    assert not hidden[~is_there].any()
    for colours in ((3, 3), (7, 2)):  # the result does not depend on the colours
        state[0, 16 + 8 * front], state[0, 16 + 8 * back] = colours
        assert np.abs(occlusion(state, np.array([back]), 64)[1][0] - hidden.astype(int)).max() <= 8


def test_what_stands_in_front_or_apart_is_not_hidden_and_the_gripper_hides_nothing(start):
    state, (front, back) = behind(start, 0.04)
    assert not occlusion(state, np.array([front]), 64)[1].any()
    state[:, :3] = centres(state)[0, front]  # right before them
    assert not occlusion(state, np.array([front]), 64)[1].any()
    apart, (_, back) = behind(start, 0.15)
    is_there, hidden = occlusion(apart, np.array([back]), 64)
    assert is_there.any() and not hidden.any()


def test_beside_a_held_thing_follows_the_gripper_and_pushes_what_is_in_its_way():
    task = TASKS[0]
    state = start_state(task, 0, "train")[0][None].copy()
    thing, things = int(state[0, 13]), state[0, 15:].reshape(8, 8)  # a view
    other = next(i for i in np.nonzero(movable(state[0]))[0] if i != thing)
    things[other, 2:4] = things[thing, 2:4] + np.array([0.06, 0])
    state[0, :3] = *things[thing, 2:4], 0.02
    state[0, 3:6], state[0, 6], state[0, HELD], state[0, 8:12] = 0, 0, thing, (0, 0, -0.02, 0)
    recorded = TabletopThings(state[:, None].repeat(2, axis=1), 64)
    offset, still = np.array([[0.02, 0, 0]]), np.array([[[0, 0, 0, 0, 0, 0, 1.0]]], dtype=np.float32)
    found = recorded.beside(np.array([0]), np.array([0]), offset, still)
    begun, before = found.things.centre[0, 0], recorded.centre[0, 0]
    np.testing.assert_allclose(begun[thing] - before[thing], offset[0], atol=1e-6)
    reach = things[thing, 6] + things[other, 6]
    assert begun[other, 0] - begun[thing, 0] > reach - 1e-6 and begun[other, 0] > before[other, 0] + 0.005
    env = Tabletop(64)
    env.reset([task], [0], "train")
    env.restore(found.things.states[:, 0])
    assert np.array_equal(found.frames, env.frames())
    assert (found.things.held == thing).all() and np.array_equal(found.things.centre[0, 1], begun)
