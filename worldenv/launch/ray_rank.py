"""A rank that Ray has started: it works like a rank of torchrun, and prints where the command was given."""

import io
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldenv.errors import exit_code
from worldenv.launch.join import LINGER_S

WORKER = "WORLDENV_RAY_WORKER"  # environment variable of a rank that Ray has started


@dataclass(frozen=True)
class Work:
    """The command that every worker runs, in the folder and for the terminal of the process that makes this."""

    command: Callable[[Sequence[str]], None]
    program: str  # name of the command
    words: Sequence[str]
    run: Path  # the run folder, whether or not the words name it
    folder: str = field(default_factory=os.getcwd)
    is_terminal: bool = field(default_factory=lambda: sys.stderr.isatty())
    columns: int = field(default_factory=lambda: shutil.get_terminal_size().columns)


def is_worker() -> bool:
    """Whether Ray has started this process as a rank."""
    return WORKER in os.environ


class Said:
    """What the ranks have printed, and whether one of them refused to begin."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []
        self._refused = False

    def write(self, stream: str, text: str) -> None:
        self._texts.append((stream, text))

    def take(self) -> list[tuple[str, str]]:
        taken, self._texts = self._texts, []
        return taken

    def refuse(self) -> None:
        self._refused = True

    def is_refused(self) -> bool:
        return self._refused


class _Stream(io.TextIOBase):
    """A standard stream of a worker; what is written to it has left the worker when `write` returns."""

    def __init__(self, said: Any, name: str, is_terminal: bool = False):
        self._said, self._name, self._is_terminal = said, name, is_terminal

    def write(self, text: str) -> int:
        import ray

        ray.get(self._said.write.remote(self._name, text))
        return len(text)

    def isatty(self) -> bool:
        return self._is_terminal


def do(work: Work, is_new: bool, said: Any) -> None:
    """Do the work as a rank. Raises RuntimeError if Ray should start all ranks again."""
    import ray

    if ray.get(said.is_refused.remote()):  # another attempt would be refused, too
        return
    os.environ |= {WORKER: "1", "COLUMNS": str(work.columns)}
    sys.stdout = _Stream(said, "stdout")
    sys.stderr = sys.__stderr__ = _Stream(said, "stderr", work.is_terminal)
    code = _done(work, is_new)
    if code == 2:
        ray.get(said.refuse.remote())
    elif code:
        time.sleep(LINGER_S)  # Ray ends all ranks when one has ended, and another may still have to say why
        raise RuntimeError(f"a rank ended with exit code {code}")


def _done(work: Work, is_new: bool) -> int:
    """Do the work; returns its exit code."""
    try:
        os.chdir(work.folder)
    except OSError as error:
        advice = "give the command in a folder that all machines of the cluster have"
        print(f"{work.program}: {error}: {advice}", file=sys.stderr)
        return 2
    words = list(work.words)
    if is_new and (work.run / "config.json").exists():  # made by an attempt before this one
        words.append("--resume")
        if os.environ.get("RANK") == "0":
            print(f"{work.program}: Ray has started the ranks again, and {work.run} goes on", file=sys.stderr)
    try:
        work.command(words)
    except SystemExit as end:
        return exit_code(end)
    except Exception:
        traceback.print_exc()
        return 1
    return 0
