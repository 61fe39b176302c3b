"""What a base of policy and reflector is pretrained on, in memory: episodes of a disturbed expert, and stills."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stills:
    """M single pictures. D is the number of all things; `shown` says which of them a picture shows.

    Where `shown` is False, `place` and `done` mean nothing.
    """

    frames: np.ndarray  # [M, H, W, 3] uint8
    proprio: np.ndarray  # [M, P] float32
    shown: np.ndarray  # [M, D] bool
    place: np.ndarray  # [M, D, 6] float32, metres: xyz of the thing, xyz of its goal
    done: np.ndarray  # [M, D] bool, whether the thing is at its goal
    asked: np.ndarray  # [M] int64, the thing of the plan; -1: there is no plan
    plan: np.ndarray  # [M, K, A] float32, the next actions of the expert with that thing
    instructions: tuple[str, ...]  # D, what a robot would be told to do with the thing


@dataclass(frozen=True)
class Disturbed:
    """Episodes of a disturbed expert, with its undisturbed plan and the places of object and goal."""

    frames: np.ndarray  # [N, T + 1, H, W, 3] uint8
    proprio: np.ndarray  # [N, T + 1, P] float32
    actions: np.ndarray  # [N, T, A] float32, as carried out; of LIBERO, as the expert wanted them
    plans: np.ndarray  # [N, T, K, A] float32, the next actions of the undisturbed expert from each state
    success: np.ndarray  # [N, T + 1] bool
    place: np.ndarray  # [N, T + 1, 6] float32, metres: xyz of the object, xyz of the goal
    states: np.ndarray | None  # [N, T + 1, 79] float64, as `Tabletop.state` returns them; None: another suite
    instructions: tuple[str, ...]
    stills: Stills | None = None  # places are measured as those of the episodes are; None: there are none
