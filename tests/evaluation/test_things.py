"""Every measure of object permanence is green on true frames and red on a seeded defect."""

from dataclasses import replace

import numpy as np
import pytest

from worldenv.data.record import Record
from worldenv.evaluation.consistency import look
from worldenv.evaluation.divergence import begin_of_divergence
from worldenv.evaluation.things import (
    EVENTS,
    STATES,
    Chunks,
    Gripper,
    aimed_thing,
    doubled,
    find_events,
    find_moved,
    find_states,
    late_frames,
    project,
)
from worldenv.evaluation.things import permanence as shares_by_chunk
from worldenv.interfaces.suite import Things
from worldenv.suites.tabletop.detector import nearest_color
from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.scenes import COLORS, TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

K, STEPS = 4, 40
LATE, CHUNK = 31, 8  # defects begin in this frame; the chunk in which they do, from 1
PLACE, PUSH = TASKS[0], TASKS[4]  # the red block on the green pad; the green puck to the cyan pad
TABLE = (150, 130, 110)


@pytest.fixture(scope="module")
def suite():
    return TabletopSuite()


@pytest.fixture(scope="module")
def episode(suite):
    """One true episode of each task, of the expert."""

    def record(task):
        made = Record(suite, suite.reset([task], [3], "train"))
        for _ in range(STEPS):
            made.step(expert_action(suite.physics))
        return made.trajectories([task], [3], "train", "expert")

    return {task: record(task)[0] for task in (PLACE, PUSH)}


def chunks_of(suite, episode, task, frames=None):
    frames = episode[task].frames if frames is None else frames
    return look(suite, [task], [episode[task]], frames[None], episode[task].proprio[None], K, STEPS)


def pixels(frames, color):  # [T, V, H, W] bool
    return nearest_color(frames) == COLORS.index(color) + 1


def erase(frames, color):
    frames[pixels(frames, color)] = TABLE


def shrink(frames, color, keep=0.55):
    for frame in frames:
        at = np.argwhere(pixels(frame[None], color)[0])
        gone = at[: round((1 - keep) * len(at))]  # from above
        frame[tuple(gone.T)] = TABLE


def split(frames, color):
    at = pixels(frames, color)
    column = int(np.median(np.argwhere(at)[:, 3]))
    at[..., :column] = at[..., column + 1 :] = False
    frames[at] = TABLE


def double(frames, color, right=-14):
    at = pixels(frames, color)
    there = np.roll(at, right, axis=3)
    frames[there] = frames[at]


def recolour(frames, color):
    frames[pixels(frames, color)] = (240, 130, 35)  # orange, which the scene does not have


def teleport(frames, color):
    double(frames, color)
    at = pixels(frames, color)
    middle = (np.argwhere(at)[:, 3].min() + np.argwhere(at)[:, 3].max()) // 2
    at[..., :middle] = False
    frames[at] = TABLE


DEFECTS = {  # defect -> the measures that it turns red
    erase: {"vanished", "below_35", "below_60"},
    shrink: {"below_60"},
    split: {"split"},
    double: {"doubled", "split"},
    recolour: {"recoloured", "vanished", "below_35", "below_60"},
    teleport: {"teleported"},
}


@pytest.mark.parametrize("color", ["yellow", "blue"])  # nobody touches them
@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_of_an_untouched_thing_turns_its_measures_red_and_no_other(suite, episode, defect, color):
    clean = shares_by_chunk(chunks_of(suite, episode, PLACE).chunks)
    frames = episode[PLACE].frames.copy()
    defect(frames[LATE:], color)
    found = shares_by_chunk(chunks_of(suite, episode, PLACE, frames).chunks)
    red = set()
    for measure in (*STATES, *EVENTS):
        assert clean["untouched"][measure][CHUNK - 1] == clean["moved"][measure][CHUNK - 1] == 0.0
        assert found["untouched"][measure][: CHUNK - 1] == clean["untouched"][measure][: CHUNK - 1]
        red |= {measure} if found["untouched"][measure][CHUNK - 1] or found["moved"][measure][CHUNK - 1] else set()
    assert red == DEFECTS[defect]


@pytest.mark.parametrize("defect", [erase, shrink, split, double, recolour])
def test_defect_of_the_moved_thing_is_seen_among_the_moved(suite, episode, defect):
    frames = episode[PLACE].frames.copy()
    defect(frames[LATE:], "red")
    found = shares_by_chunk(chunks_of(suite, episode, PLACE, frames).chunks)
    assert {measure for measure in STATES if found["moved"][measure][-1]} == DEFECTS[defect]
    assert not any(found["untouched"][measure][-1] for measure in STATES)


def test_true_episodes_are_clean(suite, episode):
    for task in episode:
        looked = chunks_of(suite, episode, task)
        for group in shares_by_chunk(looked.chunks).values():
            assert all(group[measure][-1] == 0 for measure in (*STATES, *EVENTS))
            never = ("doubled", "recoloured", *EVENTS)  # what no arm in front of a thing can look like
            assert not any(share for measure in never for share in group[measure])
        found = aimed_thing(looked.late)
        assert found == {"below_60": 0.0, "below_35": 0.0, "two_places": 0.0, "n": 3}


def test_fingertips_that_pass_through_a_thing_that_stays_are_seen(suite, episode):
    still = np.repeat(episode[PUSH].frames[:1], STEPS + 1, axis=0)  # pushed, and it does not move
    found = shares_by_chunk(chunks_of(suite, episode, PUSH, still).chunks)["moved"]["passed_through"]
    true = shares_by_chunk(chunks_of(suite, episode, PUSH).chunks)["moved"]["passed_through"]
    assert max(share for share in found if share is not None) > 0
    assert not any(true)


def test_a_thing_counts_as_moved_once_the_gripper_has_come_to_it_or_it_has_left_its_place(suite, episode):
    looked = chunks_of(suite, episode, PLACE).chunks
    moved = find_moved(looked)[0]
    red, blue, yellow = (moved[:, COLORS.index(color)] for color in ("red", "blue", "yellow"))
    assert not red[0] and red[-1] and not blue.any() and not yellow.any()
    assert (np.diff(red.astype(int)) >= 0).all()
    alone = find_moved(replace(looked, gripper=None))[0, :, COLORS.index("red")]
    assert alone[-1] and alone.argmax() >= red.argmax()  # by its place alone, and not before the gripper was there


def test_without_a_gripper_there_are_states_and_no_events(suite, episode):
    found = shares_by_chunk(replace(chunks_of(suite, episode, PLACE).chunks, gripper=None))
    assert not set(EVENTS) & found["untouched"].keys() and set(STATES) < found["untouched"].keys()


@pytest.mark.parametrize(
    ("defect", "red"),
    [
        (erase, {"below_60", "below_35"}),
        (shrink, {"below_60"}),
        (double, {"two_places"}),
        (recolour, {"below_60", "below_35"}),
    ],
)
def test_the_thing_that_the_task_moves_is_looked_at_in_three_late_frames(suite, episode, defect, red):
    frames = episode[PLACE].frames.copy()
    defect(frames[39:], "red")  # one of the three
    found = aimed_thing(chunks_of(suite, episode, PLACE, frames).late)
    assert found.pop("n") == 3
    assert found == {measure: pytest.approx(1 / 3) if measure in red else 0.0 for measure in found}


def test_late_frames_are_those_of_the_issue_and_never_the_first():
    assert late_frames(40) == [20, 30, 39]
    assert min(late_frames(1)) == 1 and max(late_frames(3)) <= 3


def test_nothing_to_look_at_gives_no_share():
    none = Things(np.zeros((2, 4, 3, 4)), np.full((2, 4, 3, 4, 2), np.nan), np.ones((2, 3), bool), np.full(2, -1))
    assert aimed_thing(none) == {"below_60": None, "below_35": None, "two_places": None, "n": 0}


def test_halves_of_one_thing_are_not_two_places():
    area = np.array([[40.0, 40, 0, 0], [60, 20, 0, 0], [60, 5, 0, 0], [100, 0, 0, 0]])
    centre = np.zeros((4, 4, 2))
    centre[:, 1, 0] = [7.0, 8.0, 12.0, np.nan]  # px apart; the thing is 10 wide
    assert doubled(area, centre, np.full(4, 100.0)).tolist() == [False, True, False, False]


def test_fingertips_are_low_below_the_height_above_which_the_robot_touches_nothing():
    proprio = np.zeros((1, 3, 7), dtype=np.float32)
    proprio[0, :, 2] = [0.95, 1.0, 1.2]
    camera = np.eye(3, 4, dtype=np.float32)[None, None]
    known = replace(TabletopSuite().robot, ground_m=0.9, clear_m=1.1)
    assert project(proprio, camera, known).is_low.tolist() == [[True, True, False]]
    assert project(proprio, camera, replace(known, clear_m=None)).is_low.tolist() == [[True, False, False]]
    np.testing.assert_allclose(project(proprio, camera, known).height, [[0.05, 0.1, 0.3]], atol=1e-6)


WIDTH, THING = 64, 64.0  # px; px of area: 8 wide


def made(places, tips, height=0.01, opening=0.0, area=THING):
    """One thing in so many frames, one chunk of 4 between each two, and fingertips that go to `tips`, one a frame."""
    frames, n = len(places), 4 * (len(places) - 1) + 1
    areas, centre = np.zeros((1, frames, 2, 4)), np.full((1, frames, 2, 4, 2), np.nan)
    areas[0, :, 0, 0], centre[0, :, 0, 0] = area, places
    things = Things(areas, centre, np.array([[True, False]]), np.array([0]))
    pixel = np.broadcast_to(np.asarray(tips, float), (1, n, 2))
    high, opened = np.full((1, n), height), np.full((1, n), opening, dtype=float)
    return Chunks(things, Gripper(pixel, high, high < 0.06, opened), 4, WIDTH)


def line(begin, end, n=5):
    return np.stack([np.linspace(a, b, n) for a, b in zip(begin, end, strict=True)], axis=1)


HERE = (32.0, 32.0)
THROUGH, DOWN = line((20, 32), (44, 32)), line((32, 31), (32, 33))


@pytest.mark.parametrize(
    ("places", "tips", "how", "passes"),
    [
        ([HERE, HERE], THROUGH, {}, True),
        ([HERE, HERE], THROUGH, {"height": 0.05}, False),  # over it
        ([HERE, HERE], THROUGH, {"opening": 1.0}, False),  # with a finger on either side
        ([HERE, HERE], DOWN, {}, False),  # comes down on it
        ([HERE, HERE], line((20, 40), (44, 40)), {}, False),  # beside it
        ([HERE, (42, 32)], THROUGH, {}, False),  # pushes it
        ([HERE, HERE], THROUGH, {"area": [THING, 0.2 * THING]}, False),  # and hides it
    ],
)
def test_passing_through_is_told_from_passing(places, tips, how, passes):
    chunks = made(places, tips, **how)
    assert find_events(chunks)["passed_through"][0, 0, 0] == passes
    assert shares_by_chunk(chunks)["moved"]["passed_through"] == [1.0] or not passes


@pytest.mark.parametrize(
    ("places", "tips", "how", "moved"),
    [
        ([HERE] * 3, (10, 10), {}, [False, False, False]),
        ([HERE] * 3, HERE, {"height": 0.1}, [False, False, False]),  # high above
        ([HERE] * 3, HERE, {}, [False, True, True]),
        ([HERE] * 3, [HERE] * 3 + [(10, 10)] * 6, {}, [False, True, True]),  # came and went
        ([HERE, (40, 32), HERE], (10, 10), {}, [False, True, True]),  # left its place and came back
        ([HERE, (40, 32), HERE], (10, 10), {"area": [THING, 0.2 * THING, THING]}, [False, False, False]),  # hidden
    ],
)
def test_moved_is_what_low_fingertips_came_near_or_what_left_its_place(places, tips, how, moved):
    assert find_moved(made(places, tips, **how))[0, :, 0].tolist() == moved


def test_thing_that_was_two_parts_from_the_first_is_not_split():
    chunks = made([HERE, HERE], (10, 10))
    for frames, expected in (([1], True), ([0, 1], False)):
        area = chunks.things.area.copy()
        area[0, frames, 0, 1] = 20
        found = find_states(replace(chunks, things=replace(chunks.things, area=area)))["split"]
        assert found[0, 1, 0] == expected


@pytest.mark.parametrize(("left", "expected"), [(0.9, False), (0.2, True)])
def test_other_look_before_a_thing_that_is_there_is_no_change_of_colour(left, expected):
    chunks = made([HERE, HERE], (10, 10), area=[THING, left * THING])
    area, centre = chunks.things.area.copy(), chunks.things.centre.copy()
    area[0, 1, 1, 0], centre[0, 1, 1, 0] = THING / 2, (33, 33)
    chunks = replace(chunks, things=replace(chunks.things, area=area, centre=centre))
    assert find_states(chunks)["recoloured"][0, 1, 0] == expected


@pytest.mark.parametrize(
    ("area", "openings", "chunk", "phase"),
    [
        ([THING, 0], (1.0, 1.0), 1, "grasp"),  # gone in imagination only
        ([THING, 0.5 * THING], (1.0, 1.0), 0, "reflector"),  # faded, and not elsewhere
        ([THING, 0], (1.0, 0.0), 1, "push"),  # closed fingertips come to it in one of them
        ([THING, 0], (0.0, 1.0), 1, "push"),
    ],
)
def test_thing_that_vanishes_in_one_parts_the_episodes(area, openings, chunk, phase):
    true = made([HERE, HERE], HERE, opening=openings[0])
    imagined = made([HERE, HERE], HERE, opening=openings[1], area=area)
    begins, phases = begin_of_divergence(true, imagined)
    assert (begins.tolist(), phases.tolist()) == ([chunk], [phase])
    assert begin_of_divergence(imagined, true)[0].tolist() == [chunk]


@pytest.mark.parametrize(("opening", "phase"), [(1.0, "grasp"), (0.0, "carry"), ([0.0, 0, 1, 1, 1], "release")])
def test_thing_that_is_moved_with_an_open_hand_is_not_carried(opening, phase):
    places = [HERE, (20, 32)], [HERE, (44, 32)]
    chunks = [made(place, (60, 60), opening=np.array(opening)) for place in places]
    assert [found.tolist() for found in begin_of_divergence(*chunks)] == [[1], [phase]]
