"""The scripted expert: in which order it works, and one demonstration where LIBERO is installed."""

import numpy as np
import pytest

from worldenv.data.formats.libero import write_libero
from worldenv.data.trajectories import TrajectoryReader
from worldenv.errors import UserError
from worldenv.suites.libero.expert_hand import angle_between, nearer, rotation, turn_from
from worldenv.suites.libero.goals import beside, ordered
from worldenv.suites.libero.rearranged import APART_M
from worldenv.suites.libero.stills import draw_stills
from worldenv.suites.libero.suite import LiberoSuite


@pytest.mark.parametrize(
    ("goal", "order"),
    [
        ([["close", "drawer"], ["in", "bowl", "drawer"]], ["in", "close"]),
        ([["on", "pot", "burner"], ["turnon", "stove"]], ["turnon", "on"]),
        ([["in", "bowl", "top"], ["close", "bottom"], ["open", "top"]], ["open", "in", "close"]),
        ([["printjointstate", "stove"], ["close", "door"]], ["close", "printjointstate"]),
    ],
)
def test_what_is_opened_comes_first_and_what_is_closed_last(goal, order):
    assert [relation for relation, *_ in ordered(goal)] == order


def test_things_on_one_place_are_counted_and_others_keep_their_order():
    goals = ordered([["on", "pot_1", "burner"], ["on", "mug", "plate"], ["on", "pot_2", "burner"], ["turnon", "stove"]])
    assert goals[1:] == [("on", "pot_1", "burner"), ("on", "mug", "plate"), ("on", "pot_2", "burner")]
    assert [beside(goals, goal) for goal in goals] == [(0, 1), (0, 2), (0, 1), (1, 2)]


def test_turns_lead_from_one_orientation_to_the_other():
    random = np.random.default_rng(0)
    for angle in (0.0, 1e-6, 0.3, 1.5, 3.0):
        axis = random.normal(size=3)
        first = rotation(np.array([0.0, 0.6, 0.8]), 1.1)
        second = rotation(axis / np.linalg.norm(axis), angle) @ first
        assert abs(angle_between(first, second) - angle) < 1e-5
        found = turn_from(first, second)
        np.testing.assert_allclose(found, angle * axis / np.linalg.norm(axis), atol=1e-4)


def test_of_two_quarter_turns_the_hand_takes_the_left_one():
    home = rotation(np.array([1.0, 0.0, 0.0]), np.pi)
    for quarter in (-np.pi / 2, np.pi / 2):
        found = nearer(rotation(np.array([0.0, 0.0, 1.0]), quarter) @ home, home)
        np.testing.assert_allclose(found, rotation(np.array([0.0, 0.0, 1.0]), np.pi / 2) @ home, atol=1e-12)


ROBOT_M = np.array([-0.6, 0.0, 0.0])  # where the robot stands in LIBERO Object


@pytest.fixture(scope="module")
def suite(libero):
    suite = LiberoSuite("libero_object", size=32, workers=1)
    yield suite
    suite.close()


@pytest.fixture(scope="module")
def demo(suite):
    (demo,) = suite.demonstrate(suite.tasks[:1], [0], "train", noise=0.0)
    return demo


def test_a_demonstration_can_be_acted_out_again_and_drawn_again(suite, demo, tmp_path):
    task, shown = suite.tasks[0], demo.trajectory
    assert demo.success and shown.success[-1] and shown.source == "expert" and len(shown.actions) == demo.steps < 200
    begun = suite.reset([task], [0], "train").seen
    seen, done = suite.carry_out(shown.actions[None])
    np.testing.assert_allclose(begun.proprio[0], shown.proprio[0], atol=1e-6)
    np.testing.assert_allclose(seen.proprio[0], shown.proprio[-1], atol=1e-4)
    assert np.array_equal(done[0], shown.success)
    for frames, moment in ((shown.frames[0], begun), (shown.frames[-1], seen)):
        assert np.abs(frames.astype(int) - moment.frames[0].numpy()).mean() < 1  # of 255
    states = demo.extras["states"]
    assert np.array_equal(suite.draw(task, 0, "train", states[[0, 40]]), shown.frames[[0, 40]])
    path = tmp_path / f"{task.name}_demo.hdf5"
    write_libero(path, [shown], [demo.extras])
    (found,) = TrajectoryReader(path)
    assert np.array_equal(found.frames, shown.frames[1:]) and found.instruction == task.instruction
    assert np.array_equal(found.camera, shown.camera) and found.views == suite.views
    with pytest.raises(UserError, match=r"a state has shape \[9\]; those of this scene have shape \[\d+\]"):
        suite.draw(task, 0, "train", states[:1, :9])


def test_a_detour_comes_before_the_recording_and_leads_elsewhere(suite, demo):
    made = [suite.demonstrate(suite.tasks[:1], [start], "train", noise=0.0, detour=True)[0] for start in (0, 3)]
    begun = [one.trajectory.proprio[0, :3] for one in (demo, *made)]
    assert all(one.success for one in made)
    assert min(np.linalg.norm(begun[0] - begun[i]) for i in (1, 2)) > 0.05 < np.linalg.norm(begun[1] - begun[2])
    assert made[0].trajectory.actions[0, 6] < 0 and made[0].trajectory.proprio[0, 6] > 0.9  # the hand is open


@pytest.fixture(scope="module")
def stills(suite, demo, tmp_path_factory):
    return draw_stills(60, [demo], suite, 8, tmp_path_factory.mktemp("stills"))


def test_plans_of_stills_lead_to_the_thing_that_is_asked_for(stills):
    rows = np.flatnonzero(stills.asked >= 0)
    assert len(rows) > 30 and stills.shown[rows, stills.asked[rows]].all()
    plan, hand = stills.plan[rows], stills.proprio[rows, :3] - ROBOT_M
    way = (stills.place[rows, stills.asked[rows], :3] - hand)[:, :2]
    far = np.linalg.norm(way, axis=1)
    moved = plan[..., :2].sum(1)
    along = (moved * way).sum(1) / (np.linalg.norm(moved, axis=1) * far + 1e-9)
    assert (along[far > 0.1] > 0.8).mean() > 0.9 and (far > 0.1).sum() > 10
    closes = (plan[..., 6] > 0).any(1)
    assert closes.any() and far[closes].max() < 0.06 and (plan[far > 0.1, 0, 6] < 0).all()


def test_stills_show_things_where_they_are_said_to_be(stills, demo):
    found = stills
    assert found.frames.shape == (60, 32, 32, 3) and (found.shown.sum(1) == 6).all()
    shown = found.shown[0]
    place, goal, done = found.place[:, shown, :3], found.place[:, shown, 3:], found.done[:, shown]
    assert np.abs(goal - goal[0, 0]).max() < 1e-3  # the basket stays
    apart = np.linalg.norm((place - goal)[..., :2], axis=-1)
    assert done.any() and (done.sum(1) <= 1).all() and (apart[done] < 0.06).all() and (apart[~done] > 0.06).mean() > 0.9
    for i in range(60):
        between = np.linalg.norm(place[i, :, None, :2] - place[i, :, :2], axis=-1)[np.triu_indices(6, 1)]
        assert between.min() > APART_M - 1e-3
    lifted = place[:, :, 2].max(1) > 0.15  # m: higher than any thing on the floor
    middle = found.proprio[lifted, None, :3] - ROBOT_M
    assert lifted.any() and (np.linalg.norm(place[lifted] - middle, axis=-1).min(1) < 0.04).all()  # in the hand
    # A picture differs more from the usual one at its things than where things are in another picture.
    on_floor = np.pad(place + ROBOT_M, ((0, 0), (0, 0), (0, 1)), constant_values=1) @ demo.trajectory.camera[0].T
    column, row = (on_floor[..., :2] / on_floor[..., 2:]).astype(int).transpose(2, 0, 1).clip(0, 31)
    unusual = np.abs(found.frames - np.median(found.frames, axis=0)).mean(-1)
    own, others = (unusual[np.arange(60)[:, None], r, c].mean() for r, c in ((row, column), (row[::-1], column[::-1])))
    assert own > 1.5 * others
    assert np.ptp(place[:, :, :2], axis=0).min() > 0.2  # every thing is moved about


def test_noise_disturbs_what_is_carried_out_and_not_what_is_recorded(suite):
    task = suite.tasks[0]
    (demo,) = suite.demonstrate([task], [1], "train", noise=0.3)
    (again,) = suite.demonstrate([task], [1], "train", noise=0.3, look=[False])
    assert demo.success and again.success and again.steps == demo.steps and again.trajectory is None
    suite.reset([task], [1], "train")
    seen, _ = suite.carry_out(demo.trajectory.actions[None, :20])
    moved = demo.trajectory.proprio[20, :3] - seen.proprio[0, :3].numpy()
    assert np.linalg.norm(moved) > 0.003  # m: without noise it goes another way
    with pytest.raises(UserError, match="there are 2 episodes for 1 workers; give at most one"):
        suite.demonstrate([task] * 2, [0, 1], "train")
