"""A small part of the commands kills.py, rank_kills.py and full_disk.py, with a fixed seed."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "words",
    [
        ["kills.py", "--kills", "6", "--seed", "3"],
        ["rank_kills.py", "--kills", "2", "--seed", "3"],
        ["full_disk.py", "--sizes", "0", "--moments", "3"],
    ],
)
def test_run_that_was_killed_or_met_a_full_disk_ends_like_one_that_was_not(words):
    command = [sys.executable, "-P", str(HERE / words[0]), *words[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert not ended.returncode, ended.stdout + ended.stderr
