"""Run folders: never overwritten, resumed exactly, and readable after a kill."""

import json
import re
import resource
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
from worldenv.records.run_folder import RunFolder, default_run_path

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
    assert {path.name for path in run.path.iterdir()} == {"config.json", "checkpoints", "videos"}
    expected = {"seed": 3, "policy": {"width": 64, "layers": [2, 3]}, "path": "a", "weight": None}
    assert json.loads((run.path / "config.json").read_text()) == run.config == expected
    assert run.result() is None and run.metrics("any") == [] and run.stages() == []


def test_folder_with_anything_in_it_is_never_overwritten(run, tmp_path):
    with pytest.raises(UserError, match=r"runs/one is not empty: use --resume to continue it or choose another --run"):
        RunFolder.create(run.path, CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        RunFolder.create(tmp_path / "mine", CONFIG)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_of_two_runs_that_take_a_folder_at_once_one_is_refused(tmp_path, monkeypatch):
    probe = run_folder._probe

    def other_comes_first(path):
        monkeypatch.setattr(run_folder, "_probe", probe)
        RunFolder.create(path, CONFIG | {"seed": 4})
        probe(path)

    monkeypatch.setattr(run_folder, "_probe", other_comes_first)
    with pytest.raises(UserError, match="another run has taken it"):
        RunFolder.create(tmp_path / "one", CONFIG)
    assert RunFolder(tmp_path / "one").config["seed"] == 4


def test_empty_folder_is_used(tmp_path):
    assert RunFolder.create(tmp_path, CONFIG).config["seed"] == 3


def test_disk_that_takes_no_data_is_refused_before_any_work(tmp_path):
    # A limit on file sizes makes the system refuse the data as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written .*free some space or choose another --run"):
            RunFolder.create(tmp_path / "full", CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "full").iterdir()) == []
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
    assert [line["step"] for line in RunFolder.resume(run.path, CONFIG).metrics("a")] == [0]


def test_path_that_cannot_hold_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            RunFolder.create(path, CONFIG)


def test_resume_of_a_folder_that_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="does not exist or is not a run"):
            RunFolder.resume(path, CONFIG)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="config.json is not valid JSON"):
        RunFolder.resume(tmp_path, CONFIG)


def test_resume_with_another_configuration_names_each_field_and_both_values(run):
    changed = {"seed": 4, "policy": {"width": 64, "layers": [2]}, "path": "a", "weight": float("inf"), "new": True}
    with pytest.raises(UserError) as error:
        RunFolder.resume(run.path, changed)
    message = str(error.value)
    assert "seed was 3, now 4; policy.layers was [2, 3], now [2]; new was absent, now true. Give" in message
    assert "width" not in message and "weight" not in message
    RunFolder.resume(run.path, CONFIG)


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
    resumed = RunFolder.resume(run.path, CONFIG)
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
    resumed = RunFolder.resume(run.path, CONFIG)
    resumed.log("a", 1, loss=2.0)
    resumed.close()
    assert points(resumed, "a/loss") == [(0, 1.0), (1, 2.0)]


def test_time_of_a_resumed_run_goes_on_where_it_was(run):
    run.log("a", 0, time_s=100.0)
    resumed = RunFolder.resume(run.path, CONFIG)
    resumed.log("a", 1)
    resumed.close()
    assert 100.0 <= resumed.metrics("a")[1]["time_s"] < 160.0


def test_run_folder_is_imported_without_tensorboard():
    code = "import sys, worldenv.records.run_folder; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_default_run_path_is_named_by_its_second():
    path = default_run_path("tabletop")
    assert path.parent == Path("runs") and re.fullmatch(r"tabletop-\d{8}-\d{6}", path.name)
    age = datetime.now() - datetime.strptime(path.name, "tabletop-%Y%m%d-%H%M%S")
    assert -1 < age.total_seconds() < 5
