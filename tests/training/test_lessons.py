"""What LIBERO's models learn from, with a fake process in the simulator's place."""

import sys
from pathlib import Path

import pytest

from worldenv.errors import UserError
from worldenv.nn import sentence
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.suites.libero.tasks import SMALL
from worldenv.training import lessons
from worldenv.training.lessons import LESSONS, SentenceEncoder

FAKE = Path(__file__).parents[1] / "suites" / "libero" / "fake_process.py"


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Suites of the first `count` of the fake's four tasks."""
    program, made = (sys.executable, str(FAKE), "", str(tmp_path / "went-wrong")), []

    def make(name, tasks, **given):
        made.append(LiberoSuite(name, tuple(range(len(tasks))), workers=2, program=program, **given))
        return made[-1]

    monkeypatch.setattr(lessons, "LiberoSuite", make)
    monkeypatch.setitem(SMALL, "libero_object-small", ("libero_object", {"tasks": (0, 1, 2), "horizon": 8}))
    yield
    for suite in made:
        suite.close()


def test_other_tasks_of_the_suite_are_rivals_or_those_of_its_benchmark(faked, monkeypatch):
    monkeypatch.setattr(SentenceEncoder, "tokenize", lambda texts: None)
    names = [task.name for task in LESSONS["libero_object-small"]().rivals("task_1")]
    assert names == ["task_0", "task_2"]
    names = [task.name for task in LESSONS["libero_object-tiny"]().rivals("task_0")]
    assert names == ["task_1", "task_2", "task_3"]


def test_language_model_that_lacks_is_told_before_anything_is_recorded(faked, monkeypatch):
    monkeypatch.setattr(sentence, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'not installed: pip install "worldenv\[sentences\]"$'):
        LESSONS["libero_object-small"]()
