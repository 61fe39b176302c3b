"""A process that acts out episodes in one scene, and answers through a pipe. An `Actor` starts it.

It imports no torch. What LIBERO prints goes where stdout and stderr go; nothing can be asked on stdin.
"""

from collections.abc import Sequence

import numpy as np

from worldenv.suites.offscreen import Moment
from worldenv.suites.serving import run


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


def main() -> None:
    """What the process of a scene executes."""
    run(Simulator())
