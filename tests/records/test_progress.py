"""The live line on a terminal, its plain counterpart in a log, and tables."""

import io
import re

import pytest

from worldenv.errors import UserError
from worldenv.records import progress
from worldenv.records.progress import Progress, human_seconds, table


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (7199, "2 h 00 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert human_seconds(seconds) == text


def test_log_file_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    log = io.StringIO()
    with Progress(30, "post-training", log) as line:
        for i in range(30):
            clock.now += 1.0
            line.advance(reward=i / 30, success="58 %")
    lines = log.getvalue().splitlines()
    assert len(lines) == 4  # at 10, 20 and 30 s, and at the end
    assert lines[0] == "post-training  10/30  20 s left  reward 0.30  success 58 %"
    assert lines[-1] == "post-training  30/30  took 30 s  reward 0.97  success 58 %"
    assert capsys.readouterr() == ("", "")


def test_time_left_does_not_count_what_was_only_read_from_disk(clock):
    log = io.StringIO()
    with Progress(20, "a", log) as line:
        for _ in range(10):
            clock.now += 0.01
            line.advance()
        for _ in range(3):
            clock.now += 100.0
            line.advance()
    lefts = re.findall(r"(\d+)/20  (.*) left", log.getvalue())
    assert lefts == [("11", "15 min 00 s"), ("12", "13 min 20 s"), ("13", "11 min 40 s")]


def test_time_left_follows_the_speed_of_the_last_minute(clock):
    log = io.StringIO()
    with Progress(1000, "a", log) as line:
        for seconds in [0.1] * 600 + [1.0] * 100:
            clock.now += seconds
            line.advance()
        assert len(line._marks) < 70
    assert log.getvalue().splitlines()[-2] == "a  691/1000  5 min 09 s left"  # the last line is that of the end


def test_time_left_of_a_resumed_stage_counts_only_the_steps_of_this_run(clock):
    log = io.StringIO()
    with Progress(100, "a", log, done=90) as line:
        clock.now += 20.0
        line.advance(2)
    assert log.getvalue().splitlines()[0] == "a  92/100  1 min 20 s left"


def test_interrupted_stage_says_how_far_it_came_and_the_interrupt_goes_on(clock):
    log = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(9, "a", log) as line:
        line.advance()
        raise KeyboardInterrupt
    assert log.getvalue() == "a  1/9  interrupted after 0.0 s\n"


def test_terminal_gets_a_live_line_with_bar_and_figures_and_stdout_stays_free(clock, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress(4, "[red]title", terminal) as line:
        line.advance(2, reward=0.5, groups_skipped=3)
        print("a result")
        line.advance(2)
    screen = terminal.getvalue()
    assert "━" in screen and "\x1b[" in screen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert "[red]title" in text and "4/4  took 0.0 s  reward 0.50  groups skipped 3" in text
    assert capsys.readouterr() == ("a result\n", "")


def test_terminal_that_cannot_redraw_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with Progress(1, "a", terminal) as line:
        line.advance()
    assert terminal.getvalue() == "a  1/1  took 0.0 s\n"


def test_progress_goes_to_stderr_unless_told_otherwise(capsys):
    with Progress(0, "nothing to do"):
        pass
    table("t", ["a"], [["b"]])
    out, err = capsys.readouterr()
    assert out == "" and "nothing to do  0/0" in err and "b" in err


@pytest.mark.parametrize(("total", "done"), [(-1, 0), (3, 4), (3, -1)])
def test_impossible_count_is_refused(total, done):
    with pytest.raises(UserError, match=f"total={total}, done={done}"):
        Progress(total, "a", done=done)


def test_table_in_a_log_is_plain_aligned_and_shows_brackets_as_they_are():
    log = io.StringIO()
    table("Success [%]", ["rule", "before", "after"], [["[bold]oracle", 0.5, "71.4 %"], ["none", 12, 0.0004]], log)
    text = log.getvalue()
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    rows = [line.rstrip() for line in text.splitlines()]
    assert "Success [%]" in rows[0]
    cells = [line for line in rows if "oracle" in line or "none" in line]
    assert cells[0].split() == ["[bold]oracle", "0.50", "71.4", "%"] and cells[1].split() == ["none", "12", "0.0004"]
    assert len(cells[0]) == len(cells[1])  # flush right


def test_table_row_of_the_wrong_length_is_refused():
    with pytest.raises(UserError, match="1 cells"):
        table("t", ["a", "b"], [["x"]], io.StringIO())
