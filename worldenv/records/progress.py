"""Progress in the terminal: one live line per stage, and tables. Nothing here writes to stdout."""

import os
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Self, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveLine
from rich.table import Table
from rich.text import Text

from worldenv.errors import UserError

PLAIN_INTERVAL_S = 10.0  # a log file gets a line at most this often
PLAIN_WIDTH = 100
RECENT_S = 60.0  # the time left is estimated from the steps of so many seconds, or from the last one if it took longer
MARK_S = 1.0  # between two times of which it is remembered how many steps were done


def is_live(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def human_seconds(s: float) -> str:
    """A duration to read: 0.4 s, 37 s, 4 min 05 s, 1 h 02 min."""
    if s < 9.95:
        return f"{s:.1f} s"
    whole = round(s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(s / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_figure(value: object) -> str:
    """A number with the digits that a reader needs; text is unchanged."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:.3g}"


class Progress:
    """Count towards a known total: a live line on a terminal, else a plain line every 10 s and at the end.

        with Progress(45, "post-training") as progress:
            progress.advance(reward=0.61, success="58 %")

    `done` is where a resumed stage begins. The time left is estimated from the last steps only: the first ones of a
    resumed stage may only be read from disk.
    Raises UserError if total is negative or done is outside [0, total].
    """

    def __init__(self, total: int, title: str, stream: TextIO | None = None, done: int = 0):
        if not 0 <= done <= total:
            raise UserError(f"Progress({title!r}): total={total}, done={done}, but 0 <= done <= total is needed")
        self.total, self.title, self.done = total, title, done
        self.stream = sys.stderr if stream is None else stream
        self.figures: dict[str, str] = {}
        self._live: LiveLine | None = None

    def __enter__(self) -> Self:
        self._began_s = self._printed_s = monotonic()
        self._marks = [(self._began_s, self.done)]  # when, and how many were done then
        if is_live(self.stream):
            columns = TextColumn("{task.description}", markup=False), BarColumn(20), TextColumn("{task.fields[state]}")
            console = Console(file=self.stream, force_terminal=True)
            # Redirection would send a program's own stdout, and with it the result, into the live line's stream.
            self._live = LiveLine(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
            self._bar = self._live.add_task(self.title, total=self.total, completed=self.done, state=self._state())
            self._live.start()
        return self

    def advance(self, n: int = 1, **figures: object) -> None:
        """Count n more, and show these figures from now on."""
        self.done += n
        self.figures |= {name: format_figure(value) for name, value in figures.items()}
        self._mark(monotonic())
        if self._live is not None:
            self._live.update(self._bar, completed=self.done, state=self._state())
        elif monotonic() - self._printed_s >= PLAIN_INTERVAL_S:
            self._print(self._state())

    def __exit__(self, kind: object, *_: object) -> None:
        took = human_seconds(monotonic() - self._began_s)
        state = self._state(f"took {took}" if kind is None else f"interrupted after {took}")
        if self._live is not None:
            self._live.update(self._bar, completed=self.done, state=state)
            self._live.stop()
        else:
            self._print(state)

    def _state(self, time: str = "") -> str:
        figures = (f"{name.replace('_', ' ')} {value}" for name, value in self.figures.items())
        return "  ".join([f"{self.done}/{self.total}", time or self._left(), *figures])

    def _mark(self, now: float) -> None:
        if len(self._marks) > 1 and now - self._marks[-2][0] < MARK_S:
            self._marks.pop()
        self._marks.append((now, self.done))
        while self._marks[1][0] < now - RECENT_S:
            self._marks.pop(0)

    def _left(self) -> str:
        (began_s, first), (ended_s, last) = self._marks[0], self._marks[-1]
        if last == first:
            return "time left unknown"
        return f"{human_seconds((ended_s - began_s) / (last - first) * (self.total - self.done))} left"

    def _print(self, state: str) -> None:
        self._printed_s = monotonic()
        print(f"{self.title}  {state}", file=self.stream, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], stream: TextIO | None = None) -> None:
    """Print a table; all columns but the first are set flush right. Raises UserError on a row of the wrong length."""
    stream = sys.stderr if stream is None else stream
    sheet = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        sheet.add_column(Text(column), justify="right" if i else "left")
    for row in rows:
        if len(row) != len(columns):
            raise UserError(f"table {title!r}: row {list(row)} has {len(row)} cells, the columns are {list(columns)}")
        sheet.add_row(*(Text(format_figure(cell)) for cell in row))
    console = Console(file=stream) if is_live(stream) else Console(file=stream, width=PLAIN_WIDTH, color_system=None)
    console.print(sheet)
