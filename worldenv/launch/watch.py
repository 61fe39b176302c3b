"""Whether the other ranks live, and who says why a job ends: two threads beside a rank's work.

The exchanges of torch.distributed wait as long as a slow rank may take, so they do not tell a slow rank from a dead
one. Here every rank counts up a number in the job's store once a second. Rank 0 looks at all numbers, the others at
that of rank 0.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from torch.distributed import Store

from worldenv.errors import UserError, exit_code

TICK_S = 1.0
SILENT = 20  # ticks without a sign of life, after which a rank is taken for lost
ALARMED = 6  # the same once an exchange has failed: who is gone then does not come back
ENDED = "ended"  # key of the store: rank and exit code of who first said why the job ends
ALARM = "alarm"


class Watch:
    """Ends this process when another rank is lost or has failed. One rank of the job says why."""

    def __init__(self, store: Store, rank: int, names: Sequence[str], program: str, linger_s: float = 0.0):
        self.store, self.rank, self.names, self.program = store, rank, names, program
        self.linger_s = linger_s  # how long this process stays when another rank says why the job ends
        self.run: object = None  # the run folder, once there is one
        self._over, self._ticks, self._threads = threading.Event(), 0, []
        self._watched = [0] if rank else list(range(1, len(names)))

    def begin(self) -> None:
        """From when all ranks have come, each with a sign of life (`beat_of`)."""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._until_lost, self._guard)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop watching: the job is done, or this process has said why it ends (`leave`).

        Waits for the threads, because C++ aborts a process that ends while one of them uses the store. It waits for at
        most SILENT ticks for each: a thread may be waiting for a store that is lost.
        """
        self._over.set()
        for thread in self._threads:
            thread.join(SILENT * TICK_S)

    def roll_call(self) -> None:
        """Return if all ranks live; this process ends here if one does not."""
        with suppress(RuntimeError):  # the store may be gone
            self.store.set(ALARM, "1")
        enough = self._ticks + ALARMED + 4  # looks, not seconds: on a busy machine a look takes longer than a tick
        while self._ticks < enough and not self._over.wait(TICK_S):
            pass

    def leave(self, error: BaseException) -> None:
        """Let the other ranks end, too. Raises SystemExit if another one has said why, else UserError for one."""
        try:
            if self.rank:
                time.sleep(1.5 * TICK_S)  # what all ranks find, rank 0 says
            is_first, code = self._claim(exit_code(error))
            if not is_first:
                raise SystemExit(code) from None
            self._let_others_see()
        finally:
            self.end()
        if isinstance(error, UserError) and self.rank:
            raise UserError(f"{self.names[self.rank]}: {error}") from error

    def _until_lost(self) -> None:
        try:
            self._look()
        except RuntimeError as error:  # of the store
            if not self._over.wait(2 * TICK_S):
                self._die(f"{self.names[0]} or its machine is gone: {first_line(error)}")

    def _look(self) -> None:
        keys = [beat_of(rank) for rank in self._watched]
        seen, silent = [b""] * len(keys), [0] * len(keys)
        while not self._over.wait(TICK_S):
            self.store.add(beat_of(self.rank), 1)
            self._ticks += 1
            if self.store.check([ENDED]):
                rank, code = json.loads(self.store.get(ENDED))
                if rank == self.rank:  # this one has something to say yet
                    return
                self._let_others_see()
                time.sleep(self.linger_s)
                os._exit(code)
            limit = ALARMED if self.store.check([ALARM]) else SILENT
            beats = self.store.multi_get(keys)
            silent = [n + 1 if old == new else 0 for n, old, new in zip(silent, seen, beats, strict=True)]
            seen = beats
            if lost := [rank for rank, n in zip(self._watched, silent, strict=True) if n >= limit]:
                who = ", ".join(self.names[rank] for rank in lost)
                self._die(f"{who} died, hangs or lost the network: no sign of life for {max(silent) * TICK_S:.0f} s")

    def _guard(self) -> None:
        """The store waits for an answer without limit where the network is cut."""
        seen, silent = -1, 0
        while not self._over.wait(TICK_S):
            silent = silent + 1 if self._ticks == seen else 0
            seen = self._ticks
            if silent >= SILENT:
                lost_s = f"{SILENT * TICK_S:.0f} s"
                self._say(f"{self.names[0]} or its machine hangs or lost the network: no answer for {lost_s}")
                os._exit(1)

    def _claim(self, code: int) -> tuple[bool, int]:
        """Whether this rank is the first to say why the job ends, and the exit code of the job."""
        mine = json.dumps([self.rank, code])
        try:
            kept = self.store.compare_set(ENDED, "", mine).decode()
        except RuntimeError:  # nobody can be asked
            return True, code
        return kept == mine, json.loads(kept)[1]

    def _die(self, line: str) -> NoReturn:
        is_first, code = self._claim(1)
        if is_first:
            self._say(line)
            self._let_others_see()
        os._exit(code)

    def _let_others_see(self) -> None:
        if self.rank == 0:  # the store may be in this process
            time.sleep(2.5 * TICK_S)

    def _say(self, line: str) -> None:
        advice = f"; continue with: {self.program} --resume --run {self.run}" if self.run else ""
        if (out := sys.__stderr__) is not None:
            shown = "\x1b[?25h" if out.isatty() else ""  # the live line hides the cursor
            print(f"{shown}\n{self.program}: {line}{advice}", file=out, flush=True)


def beat_of(rank: int) -> str:
    """The key of a rank's sign of life."""
    return f"beat/{rank}"


def first_line(error: BaseException) -> str:
    """What an error of torch says, without its stack."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
