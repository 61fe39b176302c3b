"""How long the stages took: added up over sessions, an interrupted one included."""

import json

import pytest

from worldenv.errors import UserError
from worldenv.records import stage_times
from worldenv.records.stage_times import STAGES, stage_seconds, timed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stage_times, "monotonic", lambda: now[0])
    return now


def test_seconds_of_sessions_add_up_and_an_interrupted_one_counts(tmp_path, clock):
    assert stage_seconds(tmp_path) == {}
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "base"):
        clock[0] += 5
        raise KeyboardInterrupt
    for stage, seconds in (("base", 2.5), ("exploration", 1)):
        with timed(tmp_path, stage):
            clock[0] += seconds
    assert stage_seconds(tmp_path) == {"base": 7.5, "exploration": 1.0}


def test_disk_that_is_full_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def full(path, text):
        raise UserError("no space")

    monkeypatch.setattr(stage_times, "write_text", full)
    with pytest.raises(OSError, match="the first"), timed(tmp_path, "base"):
        raise OSError("the first")


@pytest.mark.parametrize("value", [-1, "1", True, None])
def test_damaged_file_is_named(tmp_path, value):
    (tmp_path / STAGES).write_text(json.dumps({"base": value}))
    with pytest.raises(UserError, match=f"{STAGES}: 'base' should be a number of seconds"):
        stage_seconds(tmp_path)
