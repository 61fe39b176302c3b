"""Run folders: never overwritten, resumed exactly, and readable after a kill."""

import errno
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldenv.errors import UserError
from worldenv.records import run_folder
from worldenv.records.run_folder import FolderTaken, RunFolder, default_run_path

FILES = {"config.json", "checkpoints", "videos", ".lock"}
CONFIG = {"seed": 3, "policy": {"width": 64, "layers": (2, 3)}, "path": Path("a"), "weight": float("inf")}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path / "runs" / "one", CONFIG)
    yield folder
    folder.close()


def points(folder, tag):
    """(step, value) as TensorBoard reads them."""
    accumulator = EventAccumulator(str(folder.path / "tensorboard"))
    accumulator.Reload()
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


def test_new_run_has_its_configuration_and_folders(run):
    assert {path.name for path in run.path.iterdir()} == FILES
    expected = {"seed": 3, "policy": {"width": 64, "layers": [2, 3]}, "path": "a", "weight": None}
    assert json.loads((run.path / "config.json").read_text()) == run.config == expected
    assert run.result() is None and run.metrics("any") == [] and run.stages() == []


def test_folder_with_anything_in_it_is_never_overwritten(run, tmp_path):
    run.close()
    with pytest.raises(FolderTaken, match=r"runs/one is not empty: choose another --run, or continue .* --resume"):
        RunFolder.create(run.path, CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FolderTaken, match="is not empty, and holds no run: choose another --run"):
        RunFolder.create(tmp_path / "mine", CONFIG)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_run_that_is_open_is_neither_resumed_nor_said_to_be_there_to_resume(run):
    for attempt in (RunFolder.resume, lambda path: RunFolder.create(path, CONFIG)):
        with pytest.raises(FolderTaken, match="runs/one is in use by another process, or open in this one") as caught:
            attempt(run.path)
        assert "--resume" not in str(caught.value)
    assert RunFolder(run.path).config["seed"] == 3  # reading needs no lock
    run.close()
    RunFolder.resume(run.path).close()


def test_run_is_free_once_its_process_is_killed_or_its_object_gone(run, tmp_path):
    run.close()
    ready, say = os.pipe()
    if not (child := os.fork()):
        held = RunFolder.resume(run.path)
        os.write(say, b"1")
        signal.pause()
        held.close()
    os.read(ready, 1)
    with pytest.raises(FolderTaken, match="in use by another process"):
        RunFolder.resume(run.path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    held = RunFolder.resume(run.path)
    del held
    with RunFolder.resume(run.path) as held:
        held.log("a", 0)
    RunFolder.resume(run.path).close()


def test_failed_resume_lets_others_in_while_its_error_is_still_held(run):
    run.close()
    (run.path / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(UserError, match="line 1, is damaged") as held:
        RunFolder.resume(run.path)
    (run.path / "metrics.jsonl").unlink()
    RunFolder.resume(run.path).close()
    assert held.value


@pytest.mark.parametrize("write", ["log", "truncate", "write_result", "rewrite_config"])
def test_folder_that_is_open_for_reading_or_closed_is_not_written(run, write):
    given = {"write_result": [{}], "rewrite_config": [{}]}.get(write, ["a", 0])
    run.close()
    for folder in (run, RunFolder(run.path)):
        before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
        with pytest.raises(UserError, match="is open for reading only: use RunFolder.resume"):
            getattr(folder, write)(*given)
        assert before == {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_file_system_without_locks_still_takes_a_run(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match=f"^{tmp_path / 'run'}: the file system has no locks"):
        RunFolder.create(tmp_path / "run", CONFIG).close()
    left = tmp_path / "run" / ".a.01234567.partial"
    left.mkdir()
    with pytest.warns(UserWarning, match="has no locks"):
        RunFolder.resume(tmp_path / "run").close()
    assert left.exists()  # nobody knows whether its writer is dead


@pytest.mark.parametrize("is_there", [False, True])
def test_of_two_runs_that_take_a_folder_at_once_one_is_refused(tmp_path, monkeypatch, is_there):
    probe, path = run_folder._probe, tmp_path / "one"

    def other_comes_first(place):
        monkeypatch.setattr(run_folder, "_probe", probe)
        RunFolder.create(path, CONFIG | {"seed": 4})
        probe(place)

    if is_there:
        path.mkdir()
    monkeypatch.setattr(run_folder, "_probe", other_comes_first)
    with pytest.raises(FolderTaken, match="in use by another process" if is_there else "just been taken by another"):
        RunFolder.create(path, CONFIG)
    if not is_there:
        assert RunFolder(path).config["seed"] == 4
        assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_two_runs_that_begin_in_one_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "default_run_path", lambda name: Path("runs") / f"{name}-now")
    made = [RunFolder.begin("a", CONFIG) for _ in range(3)]
    assert [folder.path.name for folder in made] == ["a-now", "a-now-2", "a-now-3"]
    assert sorted(os.listdir("runs")) == ["a-now", "a-now-2", "a-now-3"]


STEPS = ("os.mkdir", "os.rename", "os.replace", "os.fsync", "os.open", "fcntl.flock")


@pytest.mark.parametrize("is_there", [False, True])
def test_kill_before_any_step_of_the_making_leaves_a_folder_that_can_be_made(tmp_path, is_there):
    ended = 0
    for moment in range(100):
        path = tmp_path / str(moment) / "run"
        if is_there:
            path.mkdir(parents=True)
        if not (child := os.fork()):
            _kill_before_step(moment)
            RunFolder.create(path, CONFIG)
            os._exit(0)
        ended = os.waitpid(child, 0)[1]
        if not ended:
            break
        assert not (path / "config.json").exists() or RunFolder.resume(path).config["seed"] == 3
        if not (path / "config.json").exists():
            RunFolder.create(path, CONFIG).close()
            assert {entry.name for entry in path.iterdir() if not entry.name.endswith(".partial")} == FILES
    assert not ended and moment > 10


def _kill_before_step(moment: int) -> None:
    steps = itertools.count()

    def guarded(step):
        def call(*given, **named):
            if next(steps) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **named)

        return call

    for name in STEPS:
        module, step = name.split(".")
        place = sys.modules[module]
        setattr(place, step, guarded(getattr(place, step)))


def test_empty_folder_is_used(tmp_path):
    assert RunFolder.create(tmp_path, CONFIG).config["seed"] == 3


def test_disk_that_takes_no_data_is_refused_before_any_work(tmp_path):
    # A limit on file sizes makes the system refuse the data as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(UserError, match="full cannot be written .*free some space"):
            RunFolder.create(tmp_path / "full", CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert RunFolder.create(tmp_path / "full", CONFIG).checkpoints.is_dir()


def test_disk_that_fills_up_while_logging_is_named(run):
    run.log("a", 0, loss=1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((run.path / "metrics.jsonl").stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(UserError, match="metrics.jsonl cannot be written .*free some space"):
            run.log("a", 1, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run.log("a", 1, loss=3.0)
    assert [line["loss"] for line in run.metrics("a")] == [1.0, 3.0]
    run.close()
    assert [line["step"] for line in RunFolder.resume(run.path).metrics("a")] == [0, 1]


def test_path_that_cannot_hold_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            RunFolder.create(path, CONFIG)


def test_resume_of_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="does not exist or is not a run"):
            RunFolder.resume(path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        RunFolder.resume(tmp_path)


def test_metrics_are_lines_of_json_kept_by_stage_with_their_time(run):
    run.log("distil", 0, loss=1.5)
    time.sleep(0.02)
    run.log("post_train", 7, reward=np.float32(0.5), loss=torch.tensor(2.0, requires_grad=True), skipped_steps=1)
    run.log("post_train", 8, reward=0.25)
    assert run.stages() == ["distil", "post_train"]
    first, second = run.metrics("post_train")
    assert 0.02 <= first.pop("time_s") <= second.pop("time_s") < 60
    assert first == {"stage": "post_train", "step": 7, "reward": 0.5, "loss": 2.0, "skipped_steps": 1}
    assert second == {"stage": "post_train", "step": 8, "reward": 0.25}
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 3


def test_values_that_are_not_finite_become_null_and_stay_readable(run):
    run.log("a", 0, loss=float("nan"), norm=np.inf, reward=1.0)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((run.path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["norm"], line["reward"]) == (None, None, 1.0)
    assert line["non_finite"] == {"loss": "nan", "norm": "inf"}
    run.write_result({"psnr": [float("inf"), np.float64(30.0)], "ssim": torch.tensor([0.5, np.nan]), "n": np.int64(5)})
    assert json.loads((run.path / "result.json").read_text(), parse_constant=refuse) == run.result()
    assert run.result() == {"psnr": [None, 30.0], "ssim": [0.5, None], "n": 5}


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(3), [1.0], {}])
def test_value_that_is_no_scalar_is_refused_by_name(run, value):
    with pytest.raises(UserError, match=rf"log\(loss=...\): {type(value).__name__} is not a scalar"):
        run.log("a", 0, loss=value)
    assert run.metrics("a") == []


def test_line_torn_by_a_kill_is_dropped_on_resume_and_the_next_one_is_whole(run):
    run.log("a", 0, loss=1.0)
    run.log("a", 1, loss=2.0)
    run.close()
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [line["step"] for line in RunFolder(run.path).metrics("a")] == [0]
    resumed = RunFolder.resume(run.path)
    assert resumed.dropped_lines == 1
    resumed.log("a", 1, loss=3.0)
    resumed.close()
    assert [(line["step"], line["loss"]) for line in RunFolder(run.path).metrics("a")] == [(0, 1.0), (1, 3.0)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_truncated_stage_is_not_logged_twice_and_other_stages_stay(run):
    for step in range(4):
        run.log("a", step, loss=float(step))
        run.log("b", step, loss=float(step))
    run.truncate("a", 2)
    run.log("a", 2, loss=20.0)
    assert [(line["step"], line["loss"]) for line in run.metrics("a")] == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert [line["step"] for line in run.metrics("b")] == [0, 1, 2, 3]
    run.close()
    assert points(run, "a/loss") == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert points(run, "b/loss") == [(step, float(step)) for step in range(4)]


def test_tensorboard_of_a_resumed_run_shows_each_point_once(run):
    run.log("a", 0, loss=1.0, note="text", bad=float("nan"))
    run.close()
    resumed = RunFolder.resume(run.path)
    resumed.log("a", 1, loss=2.0)
    resumed.close()
    assert points(resumed, "a/loss") == [(0, 1.0), (1, 2.0)]


def test_time_of_a_resumed_run_goes_on_where_it_was(run):
    assert run.earlier_s == 0 and run.age_s < 60
    run.log("a", 0, time_s=100.0)
    run.close()
    resumed = RunFolder.resume(run.path)
    assert resumed.earlier_s == 100 and 100 < resumed.age_s < 160
    resumed.log("a", 1)
    resumed.close()
    assert 100.0 <= resumed.metrics("a")[1]["time_s"] < 160.0


def test_run_folder_is_imported_without_tensorboard():
    code = "import sys, worldenv.records.run_folder; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60).returncode == 0


def test_default_run_path_is_named_by_its_second():
    path = default_run_path("tabletop")
    assert path.parent == Path("runs") and re.fullmatch(r"tabletop-\d{8}-\d{6}", path.name)
    age = datetime.now() - datetime.strptime(path.name, "tabletop-%Y%m%d-%H%M%S")
    assert -1 < age.total_seconds() < 5


def test_what_killed_writers_left_is_removed_by_the_next_owner(run):
    (run.path / "models").mkdir()
    run.close()
    places = (run.path, run.checkpoints, run.videos, run.path / "models")
    for place in places:
        (place / ".a.safetensors.0123abcd.partial").mkdir()
        (place / ".a.safetensors.0123abcd.partial" / ".tmp123").write_text("half")
        (place / "mine.partial").write_text("kept")
    RunFolder.resume(run.path).close()
    assert [sorted(entry.name for entry in place.glob("*.partial")) for place in places] == 4 * [["mine.partial"]]


def test_configuration_that_changes_is_saved(run):
    run.rewrite_config(CONFIG | {"seed": 8})
    assert run.config["seed"] == 8 == RunFolder(run.path).config["seed"]


def test_lock_that_leads_elsewhere_is_named_and_not_followed(run, tmp_path):
    run.close()
    (run.path / ".lock").unlink()
    (run.path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(UserError, match=r"\.lock cannot be written \(Too many levels of symbolic links\)"):
        RunFolder.resume(run.path)
    assert not (tmp_path / "made").exists()
