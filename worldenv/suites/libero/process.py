"""A process that acts out episodes in one scene, and answers through a pipe. An `Actor` starts it.

It imports no torch. What LIBERO prints goes where stdout and stderr go; nothing can be asked on stdin.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from worldenv.suites.libero.rearranged import Labelled, Rearranged, labelled, rearranged
from worldenv.suites.offscreen import Moment, Trace
from worldenv.suites.serving import run


class Acted(NamedTuple):
    """An episode of the expert of T actions."""

    actions: np.ndarray  # [T, 7] float32, as the expert meant them
    done: np.ndarray  # [T] bool, whether the task was done after each
    proprio: np.ndarray  # [T + 1, P] float32
    states: np.ndarray  # [T + 1, S] float64, of the simulator
    joints: np.ndarray  # [T + 1, 7] float64, rad
    camera: np.ndarray  # [V, 3, 4] float32; [T + 1, V, 3, 4], where one moves and the frames are there
    frames: np.ndarray | None  # [T + 1, V, H, W, 3] uint8; None: nobody looks, or the task was not done
    told: str  # what the expert did, and how it went
    places: np.ndarray  # [T + 1, 6] float32 m, of the thing and of where it goes, from the base of the robot
    carried: np.ndarray  # [T, 7] float32, the actions as they were carried out


class Simulator:
    """Carries out the requests, each of which is the name of a method and its arguments."""

    def describe(self, suite: str) -> tuple[list[tuple[str, str, int]], dict[str, str]]:
        """Its tasks, and which package and libraries simulate it."""
        from worldenv.suites.libero.installed import installed

        found = installed()
        from worldenv.suites.libero.scene import described

        return described(suite), found

    def load(self, suite: str, number: int, size: int, views: Sequence[str], pictures: str, shuffled: bool) -> None:
        """Build the scene of a task."""
        from worldenv.suites.libero.installed import installed

        installed()
        from worldenv.suites.libero.scene import Scene

        self.scene = Scene(suite, number, size, views, pictures, shuffled)

    def begin(self, state: int | None, seed: int, look: bool) -> Moment:
        """Begin an episode."""
        self.scene.begin(state, seed)
        return self._moment([], look)

    def act(self, actions: np.ndarray, look: bool) -> Moment:
        """Carry out actions [n, A]."""
        return self._moment([self.scene.step(action) for action in actions], look)

    def demonstrate(self, state: int | None, seed: int, *given: Any) -> Acted:
        """Begin an episode, and let the expert act it out: see `expert.demonstrate`."""
        from worldenv.suites.libero.expert import demonstrate

        self.scene.begin(state, seed)
        return demonstrate(self.scene, seed, *given)

    def draw(self, state: int | None, seed: int, states: np.ndarray) -> np.ndarray:  # [T, S] -> [T, V, H, W, 3] uint8
        """What the cameras see in stored states of an episode that began so."""
        self.scene.begin(state, seed)
        return self.scene.frames_of(states)

    def trace(self, state: int | None, seed: int, actions: np.ndarray) -> Trace:  # [T, n, A]
        """Begin an episode, carry out actions, each n times, and record its true things: see `bodies.trace`."""
        from worldenv.suites.bodies import trace

        self.scene.begin(state, seed)
        return trace(self.scene, actions)

    def beside(self, state: int | None, seed: int, *given: Any) -> list[tuple[np.ndarray, Trace]]:
        """Begin an episode, and try some of its chunks after offsets of the hand: see `bodies.beside`."""
        from worldenv.suites.bodies import beside

        self.scene.begin(state, seed)
        return beside(self.scene, *given)

    def outlines(self, state: int | None, seed: int, *given: Any) -> np.ndarray:
        """Begin an episode, and draw which pixels show true things in states of it: see `bodies.outlines`."""
        from worldenv.suites.bodies import outlines

        self.scene.begin(state, seed)
        return outlines(self.scene, *given)

    def rearrange(self, state: int | None, seed: int, *given: Any) -> Rearranged:
        """Begin an episode, and draw states of it with the things in other places: see `rearranged`."""
        self.scene.begin(state, seed)
        return rearranged(self.scene, *given)

    def label(self, state: int | None, seed: int, *given: Any) -> Labelled:
        """Begin an episode, and draw states of it with the pixels that show each thing: see `labelled`."""
        self.scene.begin(state, seed)
        return labelled(self.scene, *given)

    def _moment(self, done: list[bool], look: bool) -> Moment:
        frames = self.scene.frames() if look else None
        return Moment(np.array(done, dtype=bool), frames, self.scene.proprio(), self.scene.camera())


def main() -> None:
    """What the process of a scene executes."""
    run(Simulator())
