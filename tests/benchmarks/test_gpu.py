"""`make gpu`: says at once where there is no card, and else always leaves its JSON, whatever failed."""

import json
import re
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
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("a step was run"))
    assert gpu.main() == 2
    printed = capsys.readouterr().err
    assert "CUDA" in printed and "Nothing was built" in printed


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card: it would run for minutes")
def test_make_fails_without_a_card():
    done = subprocess.run(["make", "gpu", f"PYTHON={sys.executable}"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "needs a machine with a CUDA device" in done.stderr


def test_all_that_is_marked_is_run_on_the_face_that_it_tests(tmp_path):
    build, *others = gpu.steps(tmp_path)
    assert gpu.TOTAL_S < 600 and all(step.needs == "build" for step in others)
    assert {"--no-build-isolation", "--no-deps", "--no-index"} <= set(build.command)
    assert build.environment == {"WORLDENV_CUDA": "1"}  # no nvcc: an error, not a build that lacks what is tested
    words = [word for step in others for word in step.command]
    files = [
        path.relative_to(gpu.ROOT)
        for folder, pattern in (("tests", "test_*.py"), ("benchmarks", "bench_*.py"))
        for path in (gpu.ROOT / folder).rglob(pattern)
    ]
    triton = [path for path in files if "triton_ops" in path.parts]
    needed = [path for path in files if "pytest.mark." + "gpu" in (gpu.ROOT / path).read_text()]
    assert len(triton) > 5 and len(needed) > 5
    assert all(str(path) in words for path in needed if path not in triton)
    (step,) = (step for step in others if gpu.TRITON in step.command)
    assert step.environment == {"WORLDENV_BACKEND": "triton"}
    assert all(path.parent == Path(gpu.TRITON) for path in triton)


def test_every_benchmark_of_a_card_is_one_that_benchmark_only_runs():
    for path in gpu.marked("benchmarks", "bench_*.py"):
        for line in (gpu.ROOT / path).read_text().splitlines():
            assert not line.startswith("def bench_") or "benchmark" in line, f"{path}: {line}"


def test_hopper_is_left_to_a_step_of_its_own(tmp_path):
    others = [step for step in gpu.steps(tmp_path) if "tests/kernels/test_cuda_on_device.py" in step.command]
    assert [step.command[step.command.index("-k") + 1] for step in others] == ["not hopper", "hopper"]
    assert "def test_kernel_for_hopper" in (gpu.ROOT / "tests/kernels/test_cuda_on_device.py").read_text()


def test_steps_for_which_no_time_is_left_are_told_of():
    todo = [step("long", "import time; time.sleep(60)"), step("late", "print('never')")]
    gpu.run_all(todo, total_s=1.5)
    assert re.fullmatch(r"took longer than its 1(\.\d+)? s", todo[0].problem)  # a little has passed before it began
    assert todo[1].problem == "not run: the 1.5 s for all steps were over"


def test_failed_and_slow_and_left_out_steps_are_told_of_and_the_others_run(tmp_path, monkeypatch):
    todo = [
        step("good", "print('fine')"),
        step("bad", "print('oh no'); raise SystemExit(3)"),
        step("slow", "import time; time.sleep(60)", limit_s=0.5),
        step("after bad", "print('never')", needs="bad"),
        step("after good", "print('on')", needs="good"),
    ]
    monkeypatch.setattr(gpu, "steps", lambda report: todo)
    monkeypatch.setattr(gpu, "why_no_card", lambda: None)
    monkeypatch.setattr(gpu, "describe_card", lambda: {"name": "NVIDIA H 200/x"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")
    began = time.monotonic()
    assert gpu.main() == 1 and time.monotonic() - began < 30
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("gpu-nvidia-h-200-x-2")
    found = load(path)
    assert not found["ok"] and found["card"] == {"name": "NVIDIA H 200/x"} and found["benchmarks"] == []
    assert found["versions"]["torch"] and found["versions"]["python"]
    problems = {one["name"]: one["problem"] for one in found["steps"]}
    assert problems == {
        "good": None,
        "bad": "exit status 3",
        "slow": "took longer than its 0.5 s",
        "after bad": "not run: bad went wrong",
        "after good": None,
    }
    assert "oh no" in found["steps"][1]["output_tail"] and found["steps"][3]["exit_status"] is None


def test_what_the_benchmarks_reported_is_in_the_file(tmp_path, monkeypatch):
    def steps(reports):
        out = []
        for name in "ab":
            reported = {"benchmarks": [{"name": name}], "machine_info": {"node": "n"}, "commit_info": {}}
            path = reports / f"{name}.json"
            out.append(step(name, f"open({str(path)!r}, 'w').write({json.dumps(reported)!r})"))
            out[-1].report = path
        return out

    monkeypatch.setattr(gpu, "steps", steps)
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "root")
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(gpu, "why_no_card", lambda: None)
    monkeypatch.setattr(gpu, "describe_card", lambda: {"name": "test"})
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")
    assert gpu.main() == 0
    (path,) = tmp_path.glob("gpu-test-*.json")
    found = load(path)
    assert found["ok"] and found["benchmarks"] == [{"name": "a"}, {"name": "b"}]
    assert found["machine_info"] == {"node": "n"}


def test_a_report_that_was_not_written_to_its_end_is_left_out(tmp_path):
    (tmp_path / "empty.json").touch()
    (tmp_path / "whole.json").write_text('{"benchmarks": [{"name": "a"}]}')
    todo = [step(name, "") for name in ("empty", "whole", "absent")]
    for one in todo:
        one.report = tmp_path / f"{one.name}.json"
    assert gpu.document(todo, {})["benchmarks"] == [{"name": "a"}]


def test_what_is_there_is_saved_after_every_step():
    todo, saved = [step("one", "pass"), step("two", "pass")], []
    gpu.run_all(todo, 30.0, lambda: saved.append([one.problem for one in todo]))
    assert saved == [[None, "not run"], [None, None]]


def test_some_steps_are_run_where_only_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "steps", lambda reports: [step("one", "pass"), step("two", "pass", needs="one")])
    monkeypatch.setattr(gpu, "why_no_card", lambda: None)
    monkeypatch.setattr(gpu, "describe_card", lambda: {"name": "test"})
    for name in ("RESULTS", "LOGS", "ROOT"):
        monkeypatch.setattr(gpu, name, tmp_path)
    assert gpu.main(["--only", "two"]) == 0
    assert [one["name"] for one in load(next(tmp_path.glob("gpu-test-*.json")))["steps"]] == ["two"]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "three"])
    assert "there are ['one', 'two']" in capsys.readouterr().err
