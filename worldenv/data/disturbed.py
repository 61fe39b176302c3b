"""Episodes of a disturbed expert in memory: what a base of policy and reflector is pretrained on."""

from dataclasses import dataclass

import numpy as np


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
