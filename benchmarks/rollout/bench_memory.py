"""Resident memory (memory_use.py, a process of its own): of 4,096 episodes, and while 100,000 pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import worldenv

GOAL_BYTES, FLAT_BYTES = 4e9, 32 * 2**20


@pytest.fixture
def used(benchmark):
    def run(*arguments: str) -> dict:
        command = [sys.executable, Path(__file__).parent / "memory_use.py", *arguments]
        options = {"env": os.environ | {"PYTHONPATH": str(Path(worldenv.__file__).parents[1])}}  # this very package
        options |= {"stdout": subprocess.PIPE, "check": True}
        done = benchmark.pedantic(lambda: subprocess.run(command, **options), rounds=1)
        benchmark.extra_info.update(json.loads(done.stdout))
        return benchmark.extra_info

    return run


def bench_4096_resident_episodes(used):
    found = used("resident", "4096")
    asked = 4096 * found["bytes_per_episode"]
    assert 0.9 * asked < found["grown"] < min(1.5 * asked, GOAL_BYTES)


def bench_100_000_episodes_pass(used):
    found = used("passing", "100000")
    assert found["most"] - found["after_tenth"] < FLAT_BYTES
