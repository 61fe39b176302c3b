"""A small part of the fuzz command, with a fixed seed."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AREAS = sorted(path.stem.removeprefix("area_") for path in HERE.glob("area_*.py"))


@pytest.mark.parametrize("area", AREAS)
def test_malformed_inputs_are_refused_in_one_line_or_right(area):
    command = [sys.executable, "-P", str(HERE / "fuzz.py"), "--only", area, "--cases", "40", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert not ended.returncode, ended.stdout + ended.stderr


def test_a_rollout_under_a_limit_of_memory_halves_its_slots_and_comes_out_the_same():
    command = [sys.executable, "-P", str(HERE / "out_of_memory.py"), "--limits", "1", "--threads", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert not ended.returncode, ended.stdout + ended.stderr
