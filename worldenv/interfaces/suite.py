"""The interface of a suite: a true environment with tasks, for demonstrations and evaluation, never for practice."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from worldenv.interfaces.observation import Observation, Starts
from worldenv.robot.robot import Robot


class Task(Protocol):
    """Something to do; `instructions` are the ways to say it, the first one the canonical."""

    name: str

    @property
    def instructions(self) -> Sequence[str]: ...


@runtime_checkable
class Suite(Protocol):
    """A batch of true episodes. Start states are numbered; the splits "train" and "test" share none."""

    name: str
    tasks: Sequence[Task]
    horizon: int  # actions after which an episode ends
    views: tuple[str, ...]  # V
    robot: Robot

    def reset(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> Starts:
        """Begin one episode for each (task, start state); what their cameras show, on the CPU."""

    def step(self, action: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Carry out one action [E, A], limited to [-1, 1]: the new observation, and whether each task is done [E]."""
