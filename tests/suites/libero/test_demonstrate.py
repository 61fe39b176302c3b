"""What a base learns from, with a fake process in LIBERO's place: what is kept, repeated and left out."""

import sys
from pathlib import Path

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.suites.libero import demonstrate as module
from worldenv.suites.libero import stills as stills_module
from worldenv.suites.libero.demonstrate import demonstrate, disturb
from worldenv.suites.libero.suite import LiberoSuite

FAKE = Path(__file__).with_name("fake_process.py")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Of the fake's four tasks the first two; its expert never solves the last one."""
    program = (sys.executable, str(FAKE), "", str(tmp_path / "went-wrong"))
    monkeypatch.setattr(module, "PICKED", ("_2",))
    suite = LiberoSuite("libero_object", (0, 1), size=8, workers=2, horizon=4, program=program)
    yield suite
    suite.close()


def acted(tmp_path):
    return (tmp_path / "acted").read_text().splitlines()


def test_demonstrations_are_kept_and_only_what_lacks_is_acted_out_again(suite, tmp_path, capfd):
    given = [suite.tasks[0]] * 3, [0, 1, 2], "train", tmp_path / "kept"
    shown = demonstrate(suite, *given)
    assert [(one.task, one.start, one.split) for one in shown] == [("task_0", i, "train") for i in range(3)]
    assert all(one.success[-1] for one in shown) and len(acted(tmp_path)) == 3
    assert "the expert of libero_object  3/3" in capfd.readouterr().err
    next((tmp_path / "kept").glob("*.train.1.npz")).unlink()
    again = demonstrate(suite, *given)
    assert len(acted(tmp_path)) == 4
    for one, other in zip(shown, again, strict=True):
        assert np.array_equal(one.frames, other.frames) and np.array_equal(one.actions, other.actions)


def test_expert_is_asked_to_the_benchmark_s_horizon_whatever_that_of_the_suite(suite, tmp_path):
    demonstrate(suite, suite.tasks[:1], [0], "train", tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    assert "280 at most" in module.load_demonstration(path).told


def test_task_that_the_expert_never_solves_is_tried_from_other_start_states_and_told(suite, tmp_path):
    every = LiberoSuite("libero_object", size=8, workers=2, program=suite.program)
    with pytest.raises(UserError, match="failed at task_3 from 3 start states; the last time: noise"):
        demonstrate(every, [every.tasks[0], every.tasks[3]], [4, 5], "train", tmp_path / "kept")
    every.close()
    assert [line.split()[0] for line in acted(tmp_path)].count("3") == 3
    assert len(list((tmp_path / "kept").glob("*.task_3.train.*.npz"))) == 3


def test_pretraining_is_of_other_tasks_and_leaves_out_what_the_expert_fails(suite, tmp_path):
    data = disturb(5, 0, seed=1, chunk=3, like=suite, folder=tmp_path / "kept")
    # Numbers 0, 2, 4 are of the tasks that the suite leaves out, and the last one cannot be solved; 1, 3 of libero_90.
    assert data.instructions == ("put the blue can down",) * 4
    lengths = data.success.argmax(1)
    steps = lengths.max()
    assert data.frames.shape == (4, steps + 1, 8, 8, 3) and data.plans.shape == (4, steps, 3, 7)
    for row, length in enumerate(lengths):
        assert np.array_equal(data.plans[row, 0], data.actions[row, :3])
        assert np.array_equal(data.plans[row, length - 1], data.actions[row, [length - 1] * 3])
        assert data.success[row, length:].all() and (data.frames[row, length:] == data.frames[row, length]).all()
        assert (data.place[row, length:] == data.place[row, length]).all()
    before = len(acted(tmp_path))
    again = disturb(5, 0, seed=1, chunk=3, like=suite, folder=tmp_path / "kept")
    assert np.array_equal(again.frames, data.frames) and len(acted(tmp_path)) == before


def test_pretraining_where_things_are_shuffled_begins_with_a_detour(suite, tmp_path):
    words = {"tasks": (0, 1), "size": 8, "workers": 2, "horizon": 4, "program": suite.program}
    shuffled = LiberoSuite("libero_object", shuffled=True, **words)
    disturb(2, 0, seed=1, chunk=3, like=shuffled, folder=tmp_path / "kept")
    shuffled.close()
    assert sorted(line.split()[-1] for line in acted(tmp_path)) == ["False", "True"]  # of libero_90; of its own tasks
    before = len(acted(tmp_path))
    disturb(
        2, 0, seed=1, chunk=3, like=suite, folder=tmp_path / "kept"
    )  # another episode, though the start is the same
    assert [line.split()[-1] for line in acted(tmp_path)[before:]] == ["False"]


def test_suite_that_has_all_tasks_of_its_benchmark_pretrains_on_libero_90_alone(suite, tmp_path):
    every = LiberoSuite("libero_object", size=8, workers=2, program=suite.program)
    disturb(3, 0, seed=0, chunk=2, like=every, folder=tmp_path / "kept")
    every.close()
    assert {path.name.split(".")[0] for path in (tmp_path / "kept").iterdir()} == {"libero_90"}


@pytest.fixture
def stills(suite, tmp_path, monkeypatch):
    """Stills of a suite, of 2 a request and 4 a file. Of the tasks that it leaves out, the expert solves one, twice."""
    monkeypatch.setattr(stills_module, "thing_of", lambda name: name)
    monkeypatch.setattr(stills_module, "AT_ONCE", 2)
    monkeypatch.setattr(stills_module, "PART", 4)
    return lambda count, like=suite: disturb(6, count, 0, 2, like, tmp_path / "kept").stills


def drawn(tmp_path):
    return [int(line.split()[2]) for line in (tmp_path / "drawn").read_text().splitlines()]


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_stills_have_an_answer_for_every_thing_that_they_show(stills, suite, tmp_path):
    found = stills(7)
    assert sorted(drawn(tmp_path)) == [1, 2, 2, 2]  # of two episodes: 4 and 3
    assert found.frames.shape == (7, 8, 8, 3) and (found.frames == 2).all() and found.proprio.shape == (7, 7)
    assert found.instructions == tuple(f"put the {color} can down" for color in ("red", "green", "blue", "yellow"))
    assert (found.shown == [True, False, True, False]).all()
    assert found.done[:, 0].tolist() == [False, True] * 3 + [False] and not found.done[:, 1:].any()
    place = found.place + module._MIDDLE_M
    begins = np.repeat([0, 2000, 0, 2000], [2, 2, 2, 1])  # the number of the first still in each request
    assert np.allclose(place[:, 0, 0], begins + [0, 6, 0, 6, 0, 6, 0]) and np.allclose(
        place[:, 2, 0], place[:, 0, 0] + 3
    )
    assert np.allclose(place[:, [0, 2], 3:], 7)
    first = np.array([True, False, True, False, True, False, True])  # of each request; it has a plan for task 2's thing
    assert found.asked.tolist() == np.where(first, 2, -1).tolist() and found.plan.shape == (7, 2, 7)
    assert np.allclose(found.plan, np.where(first, 0.1 * suite.repeat, 0)[:, None, None])


def test_stills_are_of_states_of_their_own_episode(stills, tmp_path):
    found = stills(7)
    kept = [module.load_demonstration(path) for path in sorted((tmp_path / "kept").glob("libero_object.task_2.*.npz"))]
    (one, other) = (demo.extras["states"][:, :7].astype(np.float32) for demo in kept)
    for rows, own in ((found.proprio[:4], one), (found.proprio[4:], other)):
        assert all((row == own).all(1).any() for row in rows)


def test_stills_are_kept_and_only_what_lacks_or_is_damaged_is_drawn_again(stills, tmp_path, capfd):
    first, kept = stills(7), tmp_path / "kept"
    assert same(stills(7), first) and len(drawn(tmp_path)) == 4
    (kept / "stills-1.npz").unlink()
    assert same(stills(7), first) and sorted(drawn(tmp_path)[4:]) == [1, 2]
    (kept / "stills-0.npz").write_bytes(b"nothing")
    assert same(stills(7), first) and drawn(tmp_path)[6:] == [2, 2]
    assert "stills-0.npz is damaged" in capfd.readouterr().err
    assert len(stills(1).frames) == 1


def test_stills_are_the_same_whatever_the_number_of_workers(stills, suite, tmp_path):
    first = stills(7)
    for path in (tmp_path / "kept").glob("stills-*.npz"):
        path.unlink()
    alone = LiberoSuite("libero_object", (0, 1), size=8, workers=1, horizon=4, program=suite.program)
    assert same(stills(7, alone), first)
    alone.close()
    lines = [line.split() for line in (tmp_path / "drawn").read_text().splitlines()]
    assert len({line[3] for line in lines[:4]}) == 2 and len({line[3] for line in lines[4:]}) == 1


def test_stills_need_tasks_that_the_suite_leaves_out_and_a_successful_episode(suite, tmp_path):
    every = LiberoSuite("libero_object", size=8, workers=2, program=suite.program)
    with pytest.raises(UserError, match="stills need tasks of libero_object that the suite leaves out"):
        disturb(3, 5, seed=0, chunk=2, like=every, folder=tmp_path / "kept")
    every.close()
    with pytest.raises(UserError, match="no scenes to draw stills in; give more --scratch.pretraining-episodes"):
        stills_module.draw_stills(3, [], suite, 2, tmp_path)
