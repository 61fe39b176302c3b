"""`worldenv-collect` without LIBERO: which tasks are kept, what is written, and how it goes on after interruptions."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from worldenv.assemble import SUITES
from worldenv.commands import cli
from worldenv.commands.collect import Collection, Rule
from worldenv.data.trajectories import TrajectoryReader
from worldenv.files import lock
from worldenv.suites.libero.suite import LiberoSuite

FAKE = Path(__file__).parents[1] / "suites/libero/fake_process.py"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """What the command prints, as JSON; a fake process stands for LIBERO, and notes what it acts out."""

    def collect(*words, wrong=""):
        program = (sys.executable, str(FAKE), wrong, str(tmp_path / "went-wrong"))
        monkeypatch.setitem(SUITES, "libero_object", partial(LiberoSuite, "libero_object", program=program))
        cli.collect([str(word) for word in ("libero_object", "--size", 8, "--workers", 2, "--split", "test", *words)])
        return json.loads(capsys.readouterr().out)

    return collect


@pytest.fixture
def refused(run, capsys):
    def collect(*words):
        with pytest.raises(SystemExit) as ended:
            run(*words)
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith("worldenv-collect: ") and told.count("\n") == 1
        return told

    return collect


def acted(tmp_path):
    """Task, start state and whether it was drawn, of every episode that was acted out; not whether with a detour."""
    words = [line.split() for line in (tmp_path / "acted").read_text().splitlines()]
    return [(int(task), int(start), look == "True") for task, start, look, _ in words]


@pytest.mark.parametrize(
    ("successes", "verdict"),
    [
        ("1111", None),
        ("11111", (True, 5)),
        ("011111111", None),
        ("0111111111", (True, 10)),
        ("1101111111", (True, 10)),
        ("00" + 17 * "1", None),
        ("00" + 18 * "1", (True, 20)),
        ("00110", (False, 5)),
        ("", None),
        ("111111", (True, 5)),  # what was acted out beyond that does not count
    ],
)
def test_a_task_is_kept_once_enough_and_a_large_enough_share_succeed(successes, verdict):
    assert Rule(5, 0.9).decided([letter == "1" for letter in successes]) == verdict


def test_every_task_is_decided_in_the_end():
    random = np.random.default_rng(0)
    for least in (0.0, 0.5, 0.9, 1.0):
        for demos in (1, 5, 30):
            rule = Rule(demos, least)
            for share in (0.0, 0.5, 0.9, 1.0):
                outcomes = list(random.random(rule.most) < share)
                is_kept, count = rule.decided(outcomes)
                done = sum(outcomes[:count])
                assert count <= rule.most and is_kept == (done >= demos and done >= least * count - 1e-9)
            assert Rule(demos, least, measure=7).decided([True] * 6) is None
            assert Rule(demos, least, measure=7).decided([True] * 9) == (True, 7)


def test_demonstrations_are_kept_with_states_and_what_is_not_solved_is_named(run, tmp_path):
    found = run("--demos", 3, "--output", tmp_path / "demos")
    folder = tmp_path / "demos"
    kept = [f"task_{i}_demo.hdf5" for i in range(3)]
    assert sorted(path.name for path in folder.glob("*_demo.hdf5")) == kept and not (folder / "unfinished").exists()
    assert found["demonstrations"] == 9 and found["left_out"] == ["task_3"] and found["about"]["package"] == "fake"
    counts = {task["task"]: (task["success"], task["episodes"], task["kept"]) for task in found["tasks"]}
    assert counts == {"task_0": (3, 3, True), "task_1": (9, 10, True), "task_2": (3, 3, True), "task_3": (0, 3, False)}
    assert json.loads((folder / "result.json").read_text()) == found
    with TrajectoryReader(folder / kept[1]) as reader:
        shown = list(reader)
    assert [len(t.actions) for t in shown] == [3, 5, 3]  # states 0, 2 and 3; the layout drops the first
    assert shown[0].instruction == "put the green can down" and all(t.success[-1] for t in shown)
    assert shown[0].camera.shape == (1, 3, 4) and np.isfinite(shown[0].camera).all()
    with h5py.File(folder / kept[1]) as file:
        demo = file["data/demo_1"]
        assert demo["states"].shape == (6, 11) and demo["obs/joint_states"].shape == (6, 7)
        assert demo.attrs["start"] == "2" and demo.attrs["split"] == "test"
        assert file["data"].attrs["suite"] == "libero_object" and file["data"].attrs["noise"] == "0.3"
    drawn = {(task, start) for task, start, look in acted(tmp_path) if look}
    assert {start for task, start in drawn if task == 1} == {0, 1, 2, 3}  # the others only measure


def test_an_interrupted_collection_goes_on_and_makes_the_same(run, tmp_path, monkeypatch, capsys):
    words = ("--demos", 3, "--output")
    expected = run(*words, tmp_path / "whole")
    (tmp_path / "acted").unlink()
    keep, left = Collection._keep, [4]

    def interrupted(self, *episode):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        keep(self, *episode)

    monkeypatch.setattr(Collection, "_keep", interrupted)
    for count in (4, 5, 100):
        left[0] = count
        if count < 100:
            with pytest.raises(SystemExit) as ended:
                run(*words, tmp_path / "parts")
            assert ended.value.code == 130 and "run it again, and it goes on" in capsys.readouterr().err
    with open(tmp_path / "parts/episodes.jsonl", "a") as file:
        file.write('{"stage": "task_2", "st')  # as a kill leaves it
    found = run(*words, tmp_path / "parts")
    assert found | {"output": ""} == expected | {"output": ""}
    episodes = acted(tmp_path)
    assert len(episodes) <= len(set(episodes)) + 2 * 2  # what the two workers were at
    for path in (tmp_path / "whole").glob("*_demo.hdf5"):
        with TrajectoryReader(path) as mine, TrajectoryReader(tmp_path / "parts" / path.name) as other:
            for one, another in zip(mine, other, strict=True):
                assert all(np.array_equal(value, vars(another)[name]) for name, value in vars(one).items())
    before = acted(tmp_path)
    assert run(*words, tmp_path / "parts") == found and acted(tmp_path) == before  # all is there


def test_more_tasks_can_follow_and_nothing_is_made_twice(run, tmp_path):
    words = ("--demos", 2, "--output", tmp_path / "demos")
    assert [task["task"] for task in run("--tasks", "0", *words)["tasks"]] == ["task_0"]
    before = (tmp_path / "demos/task_0_demo.hdf5").stat().st_mtime_ns
    assert run("--tasks", "task_2,0", *words)["demonstrations"] == 4
    assert (tmp_path / "demos/task_0_demo.hdf5").stat().st_mtime_ns == before
    assert {task for task, *_ in acted(tmp_path)} == {0, 2}


def test_a_demonstration_that_is_lost_is_made_again(run, tmp_path, monkeypatch):
    words = ("--demos", 3, "--tasks", "0", "--output", tmp_path / "demos")
    whole = run(*words)
    (tmp_path / "demos/task_0_demo.hdf5").unlink()
    assert run(*words) == whole and (tmp_path / "demos/task_0_demo.hdf5").exists()


@pytest.mark.parametrize("wrong", ["crash", "raise"])
def test_an_episode_whose_process_goes_wrong_is_repeated(run, tmp_path, wrong):
    found = run("--demos", 2, "--tasks", "0", "--output", tmp_path / "demos", wrong=wrong)
    assert found["demonstrations"] == 2 and found["about"]["repeated_episodes"] in (1, 2)


def test_measuring_keeps_no_demonstrations(run, tmp_path):
    run("--measure", 2, "--tasks", "0", "--output", tmp_path / "measured")
    found = run("--measure", 4, "--output", tmp_path / "measured")  # goes on
    assert [(task["success"], task["episodes"]) for task in found["tasks"]] == [(4, 4), (3, 4), (4, 4), (0, 4)]
    assert found["left_out"] == ["task_1", "task_3"] and found["demonstrations"] == 0
    assert not list((tmp_path / "measured").glob("*.hdf5")) and not any(look for *_, look in acted(tmp_path))
    assert sorted(acted(tmp_path)) == [(task, start, False) for task in range(4) for start in range(4)]


def test_a_folder_of_something_else_is_refused(run, refused, tmp_path):
    words = ("--demos", 1, "--tasks", "0", "--output", tmp_path / "demos")
    run(*words)
    assert "was collected with noise 0.3, and now it is 0.1" in refused(*words, "--noise", 0.1)
    descriptor, _ = lock(tmp_path / "demos/.lock")
    assert "another worldenv-collect is at work there" in refused(*words)
    os.close(descriptor)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    assert "holds 'notes.txt' and no collection" in refused("--output", tmp_path / "mine")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--tasks", "0,4"), "--tasks has '4', no task of libero_object: numbers are 0 to 3"),
        (("--tasks", "task_x"), 'did you mean "task_'),
        (("--demos", "0"), "'0' is no positive whole number"),
        (("--noise", "2"), "'2' is no number from 0 to 1"),
        (("--least", "often"), "'often' is no number from 0 to 1"),
        (("--split", "trian"), "argument --split: invalid choice: 'trian'"),
        (("--views", "top"), "views is"),
    ],
)
def test_wrong_options_are_refused(refused, tmp_path, words, why):
    assert why in refused("--output", tmp_path / "demos", *words)


ANOTHER = """
import numpy as np
import worldenv

class Task:
    name, instructions = "wave", ("wave the hand",)

class Suite:
    name, horizon, views, tasks = "other", 5, ("top",), (Task(),)
    robot = worldenv.Robot(("x m", "y m"), ("dx", "dy"), (-1.0, -1.0), (1.0, 1.0))

    def demonstrate(self, tasks, starts, split, noise, look):
        return [self.one(task, start, split) for task, start in zip(tasks, starts)]

    def one(self, task, start, split):
        frames, path = np.full((4, 1, 8, 8, 3), start, np.uint8), np.zeros((4, 2), np.float32)
        parts = frames, path, path[:3], np.array([False, False, True]), None, ("top",)
        shown = worldenv.Trajectory(*parts, "wave the hand", task.name, start, split, "expert")
        return worldenv.Demonstration(True, 3, "waved", shown)
"""


def test_demonstrations_of_another_robot_are_in_the_layout_of_this_package(tmp_path, monkeypatch, capsys):
    (tmp_path / "waving_suite.py").write_text(ANOTHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    cli.collect(["waving_suite:Suite", "--demos", "2", "--output", str(tmp_path / "demos")])
    found = json.loads(capsys.readouterr().out)
    assert found["demonstrations"] == 2 and found["size"] is None and found["about"] == {}
    with TrajectoryReader(tmp_path / "demos/wave_demo.hdf5") as reader:
        assert [(t.start, t.split, t.frames.max(), len(t.actions)) for t in reader] == [
            (0, "train", 0, 3),
            (1, "train", 1, 3),
        ]


def test_a_suite_without_an_expert_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.collect(["tabletop", "--output", str(tmp_path / "demos")])
    assert "the suite tabletop has no expert" in capsys.readouterr().err
    assert not (tmp_path / "demos").exists()
