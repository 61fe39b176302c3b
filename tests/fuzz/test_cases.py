"""The fuzz command finds each kind of wrong end that is planted, shows what was printed, and repeats a single case."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLANTED = """
import os, subprocess, sys, time
from pathlib import Path
from cases import Case, Silent
from worldenv.errors import UserError, nearest



def right(folder):
    assert Path.cwd() == folder and not list(folder.iterdir())
    print("not shown")


def refused(folder):
    raise UserError("no such file")


def refused_in_two_lines(folder):
    raise UserError("no such\\nfile")


def silent(folder):
    raise Silent("a hole was taken for a block")


def foreign(folder):
    print("what it printed")
    nearest(3, [])


def crash(folder):
    os.kill(os.getpid(), 11)


def leaves(folder):
    os._exit(0)


def hang(folder):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", os.environ["PLANTED_MARK"]])
    time.sleep(60)


def ends_before_what_it_started(folder):
    if not os.fork():
        time.sleep(60)


def cases(rng):
    bad = (refused_in_two_lines, silent, foreign, crash, leaves, hang)
    for act in (right, refused, *bad, ends_before_what_it_started):
        yield Case(f"{act.__name__} {rng.random():.6f}", act)
"""
EXPECTED = {
    "right": 2,
    "refused": 1,
    "silent": 1,
    "foreign": 2,
    "crash": 2,
    "hang": 1,
}


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """Runs the command with the planted area only."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("fuzz.py", "cases.py"):
        (folder / name).write_text((HERE / name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "area_planted.py").write_text(PLANTED, encoding="utf-8")

    def run(*words):
        command = [sys.executable, "-P", str(folder / "fuzz.py"), "--limit", "2", *words]
        environment = os.environ | {"PLANTED_MARK": str(folder)}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)

    run.mark = str(folder)
    return run


@pytest.fixture(scope="module")
def all_cases(fuzz):
    return fuzz("--cases", "9", "--seed", "5")


def shown(text):
    """Name of every case that was printed -> its kind and what was printed with it."""
    parts = re.split(r"^(\w+): planted (\d+): (\w+) ([\d.]+)$", text, flags=re.MULTILINE)
    return {name: (kind, detail) for kind, name, detail in zip(parts[1::5], parts[3::5], parts[5::5], strict=True)}


def test_every_planted_kind_is_counted_and_the_exit_code_says_so(all_cases):
    header, row, total = (line.split() for line in all_cases.stdout.splitlines()[-3:])
    counts = dict(zip(header[1:], map(int, row[1:]), strict=True))
    assert counts == EXPECTED | {"all": 9} and row[0] == "planted" and total[1:] == row[1:]
    assert all_cases.returncode == 1, all_cases.stderr


def test_bad_cases_are_shown_with_what_they_printed_and_good_ones_are_not(all_cases):
    found = shown(all_cases.stdout)
    assert {name: kind for name, (kind, _) in found.items()} == {
        "refused_in_two_lines": "foreign",
        "silent": "silent",
        "foreign": "foreign",
        "crash": "crash",
        "leaves": "crash",
        "hang": "hang",
    }
    assert "a hole was taken for a block" in found["silent"][1]
    assert "AttributeError" in found["foreign"][1] and "what it printed" in found["foreign"][1]
    assert "exit code -11" in found["crash"][1] and "in crash" in found["crash"][1]
    assert "more than 2 s" in found["hang"][1] and "in hang" in found["hang"][1]
    assert "not shown" not in all_cases.stdout


def test_what_a_case_started_is_killed_with_it(all_cases, fuzz):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # a process that has ended
            command = path.read_bytes()
            assert b"sleep" not in command or fuzz.mark.encode() not in command


def test_single_case_is_the_same_again_and_its_success_is_exit_code_0(all_cases, fuzz):
    again = fuzz("--only", "planted", "--case", "3", "--seed", "5")
    line = next(line for line in all_cases.stdout.splitlines() if line.startswith("silent: planted 3"))
    assert again.returncode == 1 and again.stdout.splitlines()[0] == line
    assert fuzz("--only", "planted", "--case", "3", "--seed", "6").stdout.splitlines()[0] != line
    good = fuzz("--only", "planted", "--case", "1")
    assert good.returncode == 0 and good.stdout.startswith("refused: planted 1: refused ")
