import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.suites.tabletop.physics import SPLITS, Tabletop, hash_name, start_state, task_by_name
from worldenv.suites.tabletop.scenes import FAMILIES, REACH_X, REACH_Y, SIZES, TASKS, pretraining_task, siblings

PRETRAINING = [pretraining_task(i) for i in range(1500)]


def key(task):
    moved, goal = task.items[task.object], task.items[task.goal]
    return task.family, moved.kind, moved.color, goal.kind, "" if goal.kind == "tray" else goal.color


def entities(world):  # [8, 8]: kind, colour, x, y, z, yaw, radius, height
    return world[15:].reshape(-1, 8)


def moved_x(task, start, split):
    return entities(start_state(task, start, split)[0])[task.object, 2]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_splits_share_no_start(task):
    starts = range(-200, 800)
    drawn = {split: {moved_x(task, i, split) for i in starts} for split in SPLITS}
    assert (
        not drawn["train"] & drawn["validation"] | drawn["train"] & drawn["test"] | drawn["validation"] & drawn["test"]
    )
    for third, split in enumerate(SPLITS):
        shift = (np.array(sorted(drawn[split])) - task.items[task.object].x) / task.jitter
        slot = np.mod((shift + 1) / 2 * 1024, 1) * 3
        assert slot == pytest.approx(np.full(len(slot), third + 0.5), abs=1e-6)
        assert len(slot) > 500  # most cells of the lattice are met


def test_worlds_after_settling_are_disjoint_too():
    env, seen = Tabletop(16, threads=1), set()
    for split in SPLITS:
        for task in TASKS:
            env.reset([task] * 200, range(200), split)
            seen |= {row.tobytes() for row in env.state()}
    assert len(seen) == len(SPLITS) * len(TASKS) * 200


@pytest.mark.parametrize("start", [0, -1, 2**63, -(2**63), 2**64 - 2, 10**30, np.int64(-7), np.uint64(2**63 + 5)])
def test_any_integer_is_a_start_and_always_the_same_one(start):
    env = Tabletop(16, threads=1)
    for task in (TASKS[0], PRETRAINING[0]):
        env.reset([task], [start], "test")
        first, text = env.state(), env.instructions
        env.reset([task], [int(start)], "test")
        assert np.array_equal(env.state(), first) and env.instructions == text
        assert np.isfinite(first).all()
        env.reset([task], [int(start) + 1], "test")
        assert not np.array_equal(env.state(), first)


def test_every_start_is_a_world_of_its_own():
    starts = [*range(-50, 50), *range(2**63 - 5, 2**63 + 5), -(2**63) + 7]
    assert len({start_state(TASKS[0], start, "train")[0].tobytes() for start in starts}) == len(starts)


def test_starts_stay_the_same_from_version_to_version():
    assert hash_name("") == 0xCBF29CE484222325 and hash_name("a") == 0xAF63DC4C8601EC8C  # the published FNV-1a vectors
    world, text = start_state(TASKS[0], 0, "train")
    assert world[:3] == pytest.approx([0.03540548213398, -0.00166491585265, 0.14437764623326], abs=1e-12)
    assert entities(world)[0, 2:6] == pytest.approx(
        [-0.08816569010417, -3.169600839e-05, 0.0, -0.17209013121044], abs=1e-12
    )
    assert text == "place the red block on the green pad"


def test_start_does_not_depend_on_what_is_reset_beside_it():
    together, alone = Tabletop(16, threads=2), Tabletop(16, threads=1)
    tasks = [TASKS[i % 10] for i in range(33)]
    together.reset(tasks, range(33), "validation")
    for i in (0, 17, 32):
        alone.reset([tasks[i]], [i], "validation")
        assert np.array_equal(alone.state()[0], together.state()[i])
        assert alone.instructions == together.instructions[i : i + 1]


def test_things_are_shifted_over_the_whole_jitter_and_no_further():
    for task in TASKS:
        shift = np.stack([entities(start_state(task, i, "train")[0])[: len(task.items), 2:4] for i in range(200)])
        shift -= [(item.x, item.y) for item in task.items]
        assert (np.abs(shift) <= task.jitter).all()
        assert (shift.max(0) > 0.9 * task.jitter).all() and (shift.min(0) < -0.9 * task.jitter).all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_paraphrase_occurs_in_every_split(task):
    assert len(set(task.instructions)) == 4
    for split in SPLITS:
        said = [start_state(task, i, split)[1] for i in range(120)]
        assert set(said) == set(task.instructions)
        assert max(map(said.count, task.instructions)) < 60


@pytest.mark.parametrize("split", SPLITS)
def test_no_start_is_already_a_success(split):
    env = Tabletop(16, threads=1)
    for task in TASKS:
        env.reset([task] * 300, range(300), split)
        assert not env.success().any()
    env.reset(PRETRAINING, range(len(PRETRAINING)), split)
    assert env.success().mean() < 0.001  # two things may be laid out so close that their shifts bring them together


def test_pretraining_never_asks_for_what_the_tasks_ask():
    assert not {key(task) for task in TASKS} & {key(task) for task in PRETRAINING}
    assert {task.family for task in PRETRAINING} == set(FAMILIES)
    assert len({key(task) for task in PRETRAINING}) > 150


def test_pretraining_layouts_are_all_different_and_none_of_the_tasks():
    layouts = {task.items for task in PRETRAINING}
    assert len(layouts) == len(PRETRAINING)
    assert not layouts & {task.items for task in TASKS}
    assert pretraining_task(7) == PRETRAINING[7]


def test_pretraining_things_lie_apart_and_within_reach():
    for task in PRETRAINING:
        xy, radius = np.array([(i.x, i.y) for i in task.items]), np.array([SIZES[i.kind][0] for i in task.items])
        gap = np.linalg.norm(xy[:, None] - xy, axis=-1) - radius[:, None] - radius
        assert (gap[~np.eye(len(xy), dtype=bool)] > 0.03).all()
        assert (np.array([REACH_X[0], REACH_Y[0]]) <= xy).all() and (xy <= (REACH_X[1], REACH_Y[1])).all()


def test_names_on_one_table_are_unambiguous():
    for task in (*TASKS, *PRETRAINING):
        names = [item.name for item in task.items]
        assert len(set(names)) == len(names)
        for text in task.instructions:
            assert names[task.object] in text and names[task.goal] in text


def test_siblings_share_the_picture_and_ask_something_else():
    for task in TASKS:
        assert siblings(task)
        for other in siblings(task):
            assert other.items == task.items and not set(other.instructions) & set(task.instructions)


def test_unknown_task_is_refused_with_the_nearest_name():
    assert task_by_name("white-can-in-tray") is TASKS[-1]
    with pytest.raises(UserError, match="unknown task 'whit-can-in-tray' — did you mean \"white-can-in-tray\""):
        task_by_name("whit-can-in-tray")


def test_unknown_split_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="unknown split 'trian' — did you mean \"train\""):
        start_state(TASKS[0], 0, "trian")
    with pytest.raises(UserError, match="unknown split 'holdout' — valid names: test, train, validation"):
        Tabletop(16).reset([TASKS[0]], [0], "holdout")
