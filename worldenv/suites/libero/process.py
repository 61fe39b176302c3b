"""A process that acts out episodes in one scene, and answers through a pipe. `actors.py` starts it.

It imports no torch. What LIBERO prints goes where stdout and stderr go; nothing can be asked on stdin.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from worldenv.errors import UserError
from worldenv.suites.offscreen import Moment


class Simulator:
    """Carries out the requests, each of which is the name of a method and its arguments."""

    def describe(self, suite: str) -> tuple[list[tuple[str, str, int]], dict[str, str]]:
        """Its tasks, and which package and libraries simulate it."""
        from worldenv.suites.libero.installed import installed

        found = installed()
        from worldenv.suites.libero.scene import described

        return described(suite), found

    def load(self, suite: str, number: int, size: int, views: Sequence[str], pictures: str) -> None:
        """Build the scene of a task."""
        from worldenv.suites.libero.installed import installed

        installed()
        from worldenv.suites.libero.scene import Scene

        self.scene = Scene(suite, number, size, views, pictures)

    def begin(self, state: int | None, seed: int, look: bool) -> Moment:
        """Begin an episode."""
        self.scene.begin(state, seed)
        return self._moment([], look)

    def act(self, actions: np.ndarray, look: bool) -> Moment:
        """Carry out actions [n, A]."""
        return self._moment([self.scene.step(action) for action in actions], look)

    def _moment(self, done: list[bool], look: bool) -> Moment:
        frames = self.scene.frames() if look else None
        return Moment(np.array(done, dtype=bool), frames, self.scene.proprio(), self.scene.camera())


def serve(connection: Connection, simulator: Any) -> None:
    """Answer requests until the other end is closed: ("done", value), ("refused", why) or ("failed", traceback)."""
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "done", getattr(simulator, name)(*arguments)
        except UserError as error:
            answer = "refused", str(error)
        except Exception:
            answer = "failed", traceback.format_exc()
        connection.send(answer)


def run(simulator: Any) -> None:
    """Serve the connection whose descriptor is the first argument, for the process whose id is the second."""
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    try:
        serve(connection, simulator)
    finally:
        sys.stderr.flush()
        os._exit(0)  # OpenGL contexts print errors when the interpreter takes them apart


def _end_without(parent: int) -> None:
    """End this process when its parent has been killed, whatever it is busy with."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """What the process of a scene executes."""
    run(Simulator())
