"""The fixture that times rivals in turns, run by pytest as `pytest benchmarks --benchmark-only` runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import worldenv

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BENCH = """
import json, time
import torch

def slow(calls, name, seconds):
    calls.append(name)
    time.sleep(seconds)

def bench_something(versus):
    calls = []
    result = versus(lambda: slow(calls, "new", 1e-2), {"old": lambda: slow(calls, "old", 3e-2)}, rounds=4, batch=3)
    result["share"] = 0.5
    assert torch.get_num_threads() == 1
    print(json.dumps(calls))

def test_without_a_benchmark():
    raise AssertionError("--benchmark-only should skip this")
"""


def run(folder, *options):
    shutil.copy(BENCHMARKS / "conftest.py", folder)
    (folder / "bench_it.py").write_text(BENCH)
    settings = {"pythonpath": BENCHMARKS, "python_files": "bench_*.py", "python_functions": "bench_* test_*"}
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--rootdir", ".", *words, "--benchmark-only", *options]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = alone | {"PYTHONPATH": str(Path(worldenv.__file__).parents[1])}
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "1 passed, 1 skipped" in found.stdout, found.stdout + found.stderr
    return found.stdout


def check(path):
    (bench,) = json.loads(path.read_text())["benchmarks"]
    facts = bench["extra_info"]
    assert 1.5 < facts["speedup_over"]["old"] < 6 and facts["batch"] == 3 and facts["share"] == 0.5
    assert facts["median_s"]["new"] >= 1e-2 and bench["stats"]["rounds"] == 4 and len(bench["stats"]["data"]) == 4


def test_rounds_go_in_turns_and_every_figure_is_in_the_file(tmp_path):
    printed = run(tmp_path, "--benchmark-json", "here.json")
    check(tmp_path / "here.json")
    assert not list((tmp_path / ".benchmarks").rglob("*.json"))
    calls = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
    assert calls[8:16] == ["old", "new", "new", "old"] * 2  # after three warm calls and a timed one of each
    assert "x old   batch 3   share 0.5" in printed


def test_without_a_name_every_run_leaves_a_file_of_its_own(tmp_path):
    for count in (1, 2):
        run(tmp_path)
        files = sorted((tmp_path / ".benchmarks").rglob("*.json"))
        assert len(files) == count
        check(files[-1])
