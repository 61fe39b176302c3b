"""A process that acts out episodes of Meta-World in lockstep, and answers through a pipe. An `Actor` starts it.

It imports no torch: OSMesa and Triton, which torch imports, bring two copies of LLVM and crash in one process.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from worldenv.suites.offscreen import Trace
from worldenv.suites.serving import run

if TYPE_CHECKING:
    from worldenv.suites.metaworld.scene import Scene  # imports Meta-World

MOST_IDLE = 24  # scenes that are kept for later episodes of other tasks
Episode = tuple[str, tuple[int, ...]]  # task, and what its start state is drawn from


class Moments(NamedTuple):
    """What follows from a request in E episodes."""

    done: np.ndarray  # [n, E] bool
    frames: np.ndarray | None  # [E, V, H, W, 3] uint8; None: nobody looks
    proprio: np.ndarray  # [E, P] float32
    camera: np.ndarray  # [E, V, 3, 4] float32
    wanted: np.ndarray  # [E, 4] float32, what the expert would do now
    places: np.ndarray  # [E, 6] float32 m, of the thing and the goal


class Simulator:
    """Carries out the requests, each of which is the name of a method and its arguments."""

    def load(self, size: int, views: tuple[str, ...], library: str) -> None:
        """How all scenes are drawn."""
        os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = library  # read when MuJoCo is imported
        warnings.simplefilter("ignore")  # of an expert: that its wish is cut off at 1
        self._given, self._kept, self._acting = (size, views, library), {}, []

    def begin(self, episodes: Sequence[Episode], look: bool) -> Moments:
        """Begin these episodes, in the place of those before."""
        self._acting = self._scenes([task for task, _ in episodes])
        for scene, (_, seed) in zip(self._acting, episodes, strict=True):
            scene.begin(np.random.default_rng(seed))
        return self._moments([], look)

    def act(self, actions: np.ndarray, look: bool) -> Moments:  # [n, E, 4]
        """Carry out actions in all episodes."""
        done = [[scene.step(action) for scene, action in zip(self._acting, row, strict=True)] for row in actions]
        return self._moments(done, look)

    def trace(self, task: str, seed: tuple[int, ...], actions: np.ndarray) -> Trace:  # [T, n, 4]
        """Begin one episode, carry out actions, each n times, and record its true things: see `bodies.trace`."""
        from worldenv.suites.bodies import trace

        return trace(self._begun(task, seed), actions)

    def beside(self, task: str, seed: tuple[int, ...], *given: Any) -> list[tuple[np.ndarray, Trace]]:
        """Begin one episode, and try some of its chunks after offsets of the hand: see `bodies.beside`."""
        from worldenv.suites.bodies import beside

        return beside(self._begun(task, seed), *given)

    def outlines(self, task: str, seed: tuple[int, ...], *given: Any) -> np.ndarray:
        """Begin one episode, and draw which pixels show true things in states of it: see `bodies.outlines`."""
        from worldenv.suites.bodies import outlines

        return outlines(self._begun(task, seed), *given)

    def _begun(self, task: str, seed: tuple[int, ...]) -> "Scene":
        self._acting = self._scenes([task])
        self._acting[0].begin(np.random.default_rng(seed))
        return self._acting[0]

    def _moments(self, done: list[list[bool]], look: bool) -> Moments:
        frames = np.stack([scene.frames() for scene in self._acting]) if look else None
        parts = [(s.proprio(), s.camera(), s.expert_action(), s.places()) for s in self._acting]
        seen = (np.stack(part) for part in zip(*parts, strict=True))
        return Moments(np.array(done, dtype=bool).reshape(-1, len(self._acting)), frames, *seen)

    def _scenes(self, tasks: list[str]) -> "list[Scene]":
        """A scene for each episode; those of before, where there are some of its task."""
        from worldenv.suites.metaworld.scene import Scene  # imports Meta-World

        wanted = Counter(tasks)
        if sum(len(kept) for name, kept in self._kept.items() if name not in wanted) > MOST_IDLE:
            self._kept = {name: kept for name, kept in self._kept.items() if name in wanted}
        for name, number in wanted.items():
            kept = self._kept.setdefault(name, [])
            kept += [Scene(name, *self._given) for _ in range(number - len(kept))]
        free = {name: iter(self._kept[name]) for name in wanted}
        return [next(free[name]) for name in tasks]


def main() -> None:
    """What the process executes."""
    run(Simulator())
