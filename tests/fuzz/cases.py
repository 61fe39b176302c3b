"""One malformed input, and what a process of its own made of it."""

import faulthandler
import json
import linecache
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import worldenv
from worldenv.errors import UserError

PACKAGE = str(Path(worldenv.__file__).parent)
MEMORY_BYTES = 3 << 30  # what a case may take beyond its parent: a claim of terabytes should be refused, not tried
OUTPUT_BYTES = 4000  # of what a case printed, that are shown
RIGHT = ("right", "refused")


class Silent(Exception):
    """A wrong input was accepted; the message says what came of it."""


@dataclass(frozen=True)
class Case:
    """`act` makes a malformed input in an empty folder and uses it.

    It returns if what it got is right, raises Silent if a wrong input was accepted, and lets all other errors through.
    """

    name: str  # what was done, with every random choice
    act: Callable[[Path], None]


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    kind: str  # right, refused, silent, foreign, crash or hang
    detail: str = ""

    @property
    def is_good(self) -> bool:
        return self.kind in RIGHT


def outcome_of(case: Case, limit_s: float = 60.0) -> Outcome:
    """Run a case in a forked process with a folder, a process group and a memory limit of its own.

    All that it started and left running in its group is killed. What it printed follows the detail of a bad outcome.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as printed,
    ):
        child = os.fork()
        if not child:
            _in_child(case, Path(folder), answer.fileno(), printed.fileno(), limit_s)
        os.setpgid(child, child)  # as the child does itself: whichever comes first
        try:
            has_ended = _ends_within(child, limit_s)
        finally:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        outcome = _outcome(answer, status) if has_ended else Outcome("hang", f"more than {limit_s:g} s")
        return outcome if outcome.is_good else Outcome(outcome.kind, f"{outcome.detail}\n{_end_of(printed)}".rstrip())


def _ends_within(child: int, limit_s: float) -> bool:
    process = os.pidfd_open(child)
    try:
        return bool(select.select([process], [], [], limit_s)[0])
    finally:
        os.close(process)


def _outcome(answer: BinaryIO, status: int) -> Outcome:
    answer.seek(0)
    words = answer.read()
    if status or not words:
        return Outcome("crash", f"exit code {os.waitstatus_to_exitcode(status)}")
    return Outcome(*json.loads(words))


def _end_of(printed: BinaryIO) -> str:
    printed.seek(0)
    return printed.read()[-OUTPUT_BYTES:].decode(errors="replace")


def _in_child(case: Case, folder: Path, answer: int, printed: int, limit_s: float) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        faulthandler.enable(printed)  # says where it crashed, or what it was doing shortly before its time is over
        faulthandler.dump_traceback_later(0.9 * limit_s, file=printed)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        outcome = _judged(case, folder)
        os.write(answer, json.dumps([outcome.kind, outcome.detail]).encode())
        status = 0
    finally:  # whatever happens, the child does not return into its parent's program
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _judged(case: Case, folder: Path) -> Outcome:
    try:
        case.act(folder)
    except Silent as accepted:
        return Outcome("silent", str(accepted))
    except BaseException as error:
        message = str(error)
        if not _is_own(error):
            return Outcome("foreign", "".join(traceback.format_exception(error))[-3000:])
        if not message or "\n" in message:
            return Outcome("foreign", f"the message is not one line: {message!r}")
        return Outcome("refused", message)
    return Outcome("right")


def _is_own(error: BaseException) -> bool:
    """Whether the package itself raised this: a UserError, or a built-in exception by its own `raise` statement."""
    if isinstance(error, UserError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.startswith(PACKAGE):
        return False
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return line.startswith("raise ") and not isinstance(error, SystemExit | KeyboardInterrupt)
