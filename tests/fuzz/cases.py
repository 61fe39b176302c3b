"""One malformed input, and what a process of its own made of it."""

import json
import linecache
import os
import resource
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import worldenv
from worldenv.errors import UserError

PACKAGE = str(Path(worldenv.__file__).parent)
MEMORY_BYTES = 3 << 30  # what a case may take beyond its parent: a claim of terabytes should be refused, not tried
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


def outcome_of(case: Case, limit_s: float = 20.0) -> Outcome:
    """Run a case in a forked process with a folder, a process group and a memory limit of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, tempfile.TemporaryFile() as said:
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            _in_child(case, Path(folder), send, said.fileno())
        os.close(send)
        try:
            answer = _answer(receive, limit_s)
        finally:
            os.close(receive)
            os.killpg(child, signal.SIGKILL) if _leads_its_group(child) else os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        said.seek(0)
        output = said.read()[-2000:].decode(errors="replace")
    if answer is None:
        return Outcome("hang", f"more than {limit_s:g} s\n{output}")
    if not answer:
        return Outcome("crash", f"wait status {status}\n{output}")
    return Outcome(*json.loads(answer))


def _leads_its_group(child: int) -> bool:
    try:
        return os.getpgid(child) == child
    except ProcessLookupError:
        return False


def _answer(receive: int, limit_s: float) -> bytes | None:
    """What the child sent; empty if it died first, None if it took too long."""
    end, answer = time.monotonic() + limit_s, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([receive], [], [], left)[0]:
            if not (part := os.read(receive, 1 << 16)):
                return answer
            answer += part
    return None


def _in_child(case: Case, folder: Path, send: int, said: int) -> None:
    os.setsid()
    os.dup2(said, 1)
    os.dup2(said, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    outcome = _judged(case, folder)
    os.write(send, json.dumps([outcome.kind, outcome.detail]).encode())
    os._exit(0)


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
