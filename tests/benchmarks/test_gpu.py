"""`make gpu`: says at once where there is no card, and else always leaves its JSON, whatever failed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
import torch
from document import load


def step(name, code, limit_s=60.0, needs=None):
    return gpu.Step(name, [sys.executable, "-c", code], limit_s, needs)


def test_without_a_card_it_says_so_and_builds_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run", lambda step: pytest.fail("a step was run"))
    assert gpu.main() == 2
    printed = capsys.readouterr().err
    assert "CUDA" in printed and "Nothing was built" in printed


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card: it would run for minutes")
def test_make_fails_without_a_card():
    done = subprocess.run(["make", "gpu", f"PYTHON={sys.executable}"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "needs a machine with a CUDA device" in done.stderr


def test_steps_fit_into_ten_minutes_and_run_what_is_marked(tmp_path):
    build, tests, benchmarks = gpu.steps(tmp_path / "report.json")
    assert build.limit_s + tests.limit_s + benchmarks.limit_s < 600
    assert "--no-build-isolation" in build.command and "--no-deps" in build.command
    assert tests.needs == benchmarks.needs == "build"
    assert any(word.endswith("bench_matrix_peak.py") for word in benchmarks.command)
    assert all("mark.gpu" in Path(word).read_text() for word in benchmarks.command if word.endswith(".py"))


def test_failed_and_slow_and_left_out_steps_are_told_of_and_the_others_run(tmp_path, monkeypatch):
    todo = [
        step("good", "print('fine')"),
        step("bad", "print('oh no'); raise SystemExit(3)"),
        step("slow", "import time; time.sleep(60)", limit_s=0.5),
        step("after bad", "print('never')", needs="bad"),
        step("after good", "print('on')", needs="good"),
        gpu.Step("nothing", [], 1.0),
    ]
    monkeypatch.setattr(gpu, "steps", lambda report: todo)
    monkeypatch.setattr(gpu, "why_no_card", lambda: None)
    monkeypatch.setattr(gpu, "describe_card", lambda: {"name": "NVIDIA H 200/x"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    began = time.monotonic()
    assert gpu.main() == 1 and time.monotonic() - began < 30
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("gpu-nvidia-h-200-x-2")
    found = load(path)
    assert not found["ok"] and found["card"] == {"name": "NVIDIA H 200/x"} and found["benchmarks"] == []
    assert found["versions"]["torch"] and found["versions"]["python"]
    problems = {one["name"]: one["problem"] for one in found["steps"]}
    assert problems == {
        "good": None, "bad": "exit status 3", "slow": "took longer than its 0.5 s",
        "after bad": "not run: bad went wrong", "after good": None, "nothing": "not run: no file marks anything gpu",
    }  # fmt: skip
    assert "oh no" in found["steps"][1]["output_tail"] and found["steps"][3]["exit_status"] is None


def test_what_the_benchmarks_reported_is_in_the_file(tmp_path, monkeypatch):
    reported = {"benchmarks": [{"name": "a"}], "machine_info": {"node": "n"}, "commit_info": {}}
    monkeypatch.setattr(gpu, "steps", lambda report: [
        step("benchmarks", f"open({str(report)!r}, 'w').write({json.dumps(reported)!r})")])  # fmt: skip
    monkeypatch.setattr(gpu, "why_no_card", lambda: None)
    monkeypatch.setattr(gpu, "describe_card", lambda: {"name": "test"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main() == 0
    found = load(next(tmp_path.glob("gpu-test-*.json")))
    assert found["ok"] and found["benchmarks"] == reported["benchmarks"] and found["machine_info"] == {"node": "n"}
