"""The interface of a suite: a true environment with tasks, for demonstrations and evaluation, never for practice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from worldenv.interfaces.observation import Observation, Starts
from worldenv.robot.robot import Robot

PARTS = 4  # P, of a thing that a detector lists


@dataclass(frozen=True)
class Things:
    """What a detector finds in T frames of N episodes, for each of the C looks (colours, say) that it tells apart."""

    area: np.ndarray  # [N, T, C, P] float32, pixels of each connected part, largest first; 0: no such part
    centre: np.ndarray  # [N, T, C, P, 2] float32, pixels (x, y) in the first view; NaN: no such part
    known: np.ndarray  # [N, C] bool: one thing of this look, which can be moved, belongs to the episode's task
    aim: np.ndarray  # [N] int64, the look of the thing that the task moves; -1: the detector cannot tell it

    def at(self, frames: Sequence[int]) -> "Things":
        """The things in some of the frames."""
        return replace(self, area=self.area[:, frames], centre=self.centre[:, frames])


class Task(Protocol):
    """Something to do; `instructions` are the ways to say it, the first one the canonical."""

    name: str

    @property
    def instructions(self) -> Sequence[str]: ...


@runtime_checkable
class Suite(Protocol):
    """A batch of true episodes. Start states are numbered; the splits "train", "validation" and "test" share none.

    A suite may also offer a detector, `find_things(frames, tasks) -> Things`: the things that it sees in frames
    [N, T, V, H, W, 3] uint8 of episodes of these N tasks, true or imagined. With it, an evaluation says whether things
    stay what and where they are (worldenv/evaluation/things.py). A suite that has none is measured without.

    A suite that cannot step any number of episodes together says which ones it can: `groups(tasks) -> list[list[int]]`,
    rows of `tasks` in the order in which they cost least. Evaluation works through these groups; `reset` takes any
    number of episodes, of which only a group can then be stepped.

    A suite for which pictures are dear may offer `carry_out(actions) -> (Observation, done)`: a chunk [E, K, A] of
    actions, the observation after the last one, and whether each task is done after each [E, K] bool.

    A suite whose episodes take long to begin may say in `practice_starts` from how many start states practice draws:
    fewer than the usual 960.

    A suite that has an expert may offer `demonstrate(tasks, starts, split, noise, look) -> list[Demonstration]`: an
    episode for each of at most `workers` (task, start state), with noise between 0 and 1 on what is carried out, and a
    trajectory where it succeeded and `look` asks for it. worldenv-collect gathers them.

    `about() -> dict`, if it is there, says what else a result depends on (versions, rendering): for result.json.
    """

    name: str
    tasks: Sequence[Task]
    horizon: int  # actions after which an episode ends
    views: tuple[str, ...]  # V
    robot: Robot

    def reset(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> Starts:
        """Begin one episode for each (task, start state); what their cameras show, on the CPU."""

    def step(self, action: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Carry out one action [E, A], limited to [-1, 1]: the new observation, and whether each task is done [E]."""
