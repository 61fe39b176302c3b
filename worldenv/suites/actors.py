"""Episodes in processes of their own. A process that crashes or hangs is replaced, and its episode repeated."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from worldenv.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # what worldenv is imported from
ATTEMPTS = 3  # at one request, before an episode is given up
WORDS = 400  # characters of what a process printed last


def program(module: str) -> tuple[str, ...]:
    """The command that executes `main` of a module in a process of its own."""
    return sys.executable, "-P", "-c", f"from {module} import main; main()"


class Died(Exception):
    """A process has ended, failed or not answered in time."""


class Process:
    """A process that answers requests in order. It ends with the object, and with the process that made it."""

    def __init__(self, program: Sequence[str]):
        self._printed = TemporaryFile()  # noqa: SIM115  open as long as the process
        self.connection, theirs = Pipe()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with theirs:
            self.popen = subprocess.Popen(
                [*program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent, which ends this one
            )

    def ask(self, request: tuple) -> None:
        with suppress(OSError):  # it has ended: `answer` says so
            self.connection.send(request)

    def answer(self, timeout_s: float) -> Any:
        """The answer to the next request. Raises UserError if it was refused, Died if none comes."""
        try:
            if not self.connection.poll(timeout_s):
                raise Died(f"it has not answered for {timeout_s:g} s")
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise Died(self._ending()) from None
        if kind == "refused":
            raise UserError(value)
        if kind == "failed":
            raise Died(value.strip().splitlines()[-1])
        return value

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)
        code = self.popen.poll()
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        self._printed.seek(0)
        words = " ".join(self._printed.read().decode(errors="replace").split())[-WORDS:]
        return f"it ended with {how}" + (f" and said: {words}" if words else "")

    def end(self) -> None:
        self.popen.kill()
        with suppress(subprocess.TimeoutExpired):  # one that the kernel does not let go
            self.popen.wait(10)
        self.connection.close()
        self._printed.close()


def ask_once(program: Sequence[str], request: tuple, timeout_s: float) -> Any:
    """The answer of a process that is started for this one request. Raises UserError if it gives none."""
    process = Process(program)
    try:
        process.ask(request)
        return process.answer(timeout_s)
    except Died as error:
        raise UserError(f"the simulator does not start: {error}") from None
    finally:
        process.end()


class Actor:
    """Acts out one episode at a time, or some in lockstep. Another scene has a process of its own.

    `begin`, `act` and `perform` return at once; `answer` waits for what follows. Simulations are deterministic: an
    episode whose process has died comes to the same point again, and nobody else notices. `repeated` counts these.
    """

    def __init__(self, program: Sequence[str], timeout_s: float = 180.0):
        self.program, self.timeout_s, self.repeated = program, timeout_s, 0
        self.process: Process | None = None
        self.scene: tuple = ()  # of the last request
        self._first: tuple = ()  # the request with which the episode begins
        self._actions: list[np.ndarray] = []
        self._owed = self._last = 0  # answers that are due; actions of the last request
        self._look = True

    def begin(self, scene: tuple, start: tuple) -> None:
        """Begin an episode: `scene` and `start` are the arguments of the simulator's `load` and `begin`."""
        self.perform(scene, "begin", *start, True)

    def perform(self, scene: tuple, *request: Any) -> None:
        """Ask the simulator of a scene for anything else than what follows from an episode: a method, its arguments."""
        if scene != self.scene:
            self.end()
        self.scene, self._first, self._actions, self._last, self._look = scene, request, [], 0, True
        if self.process is None:
            self._launch()
        self._ask(*request)

    def act(self, actions: np.ndarray, look: bool) -> None:  # [n, ..., A]
        """Carry out actions, and show what the cameras see after the last one if somebody looks."""
        self._actions.extend(actions)
        self._last, self._look = len(actions), look
        if self.process is not None:
            self._ask("act", actions, look)

    def answer(self) -> Any:
        """What follows from the last request. Raises UserError if no process can tell."""
        for attempt in range(ATTEMPTS):
            try:
                if self.process is None:
                    self._repeat()
                while self._owed:
                    answer = self.process.answer(self.timeout_s)
                    self._owed -= 1
                if self._first[0] != "begin":
                    return answer
                return answer._replace(done=answer.done[len(answer.done) - self._last :])
            except UserError:
                self.end()
                raise
            except Died as error:
                self.end()
                self.repeated += attempt + 1 < ATTEMPTS
                died = error
        raise UserError(f"the simulator failed {ATTEMPTS} times at the same step of an episode; the last time: {died}")

    def _launch(self) -> None:
        self.process, self._owed = Process(self.program), 0
        self.process.ask(("load", *self.scene))  # answered only if it fails

    def _ask(self, *request: Any) -> None:
        self.process.ask(request)
        self._owed += 1

    def _repeat(self) -> None:
        self._launch()
        self._ask(*self._first)
        if self._actions:
            self._ask("act", np.stack(self._actions), self._look)

    def end(self) -> None:
        """End the process; an episode that is acted out goes on in another one."""
        if self.process is not None:
            self.process.end()
            self.process = None
