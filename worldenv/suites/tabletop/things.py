"""The true places of the things on the tables, and what each covers of the picture: labels to train with."""

from collections.abc import Sequence

import numpy as np

from worldenv.suites.tabletop.physics import Tabletop, task_by_name
from worldenv.suites.tabletop.scenes import KINDS, TASKS

HELD = 7  # column of a state (csrc/tabletop/world.h): index of the thing in the gripper, -1 for none
_ENTITIES, _NUMBERS = 15, 8  # first column of the things, and numbers of each
_AWAY = (0.19, 0.21, 0.2, 0, 0, 0, 1)  # a gripper that hides nothing
_NOWHERE_M = 5.0
_FAINT, _SURE = 15, 60  # of 765: changes of a pixel by which a thing covers none of it, and all of it


def act_out(
    tasks: Sequence[str],  # N names
    starts: Sequence[int],
    split: str,
    actions: np.ndarray,  # [N, T, 7]
) -> np.ndarray:  # [N, T + 1, 79] float64
    """The states that recorded actions lead through, from the same starts: the physics is deterministic."""
    env = Tabletop()
    env.reset([task_by_name(name) for name in tasks], starts, split)
    states = [env.state()]
    for step in range(actions.shape[1]):
        env.step(actions[:, step])
        states.append(env.state())
    return np.stack(states, axis=1)


def centres(states: np.ndarray) -> np.ndarray:  # [..., 79] -> [..., 8, 3] float32, m
    """The middle of each thing; of places on the table that are empty, the middle of the table."""
    thing = _things(states)
    return np.stack([thing[..., 2], thing[..., 3], thing[..., 4] + thing[..., 7] / 2], axis=-1).astype(np.float32)


def movable(states: np.ndarray) -> np.ndarray:  # [..., 79] -> [..., 8] bool
    """Which things a gripper can move."""
    return np.isin(_things(states)[..., 0], [KINDS.index(kind) for kind in ("block", "can", "puck")])


def coverage(states: np.ndarray, thing: np.ndarray, size: int) -> np.ndarray:  # [N, 79], [N] int -> [N, size, size]
    """How much of every pixel a thing covers where nothing hides it, 255 for all of the pixel: uint8."""
    env, pictures = Tabletop(size), []
    env.reset([TASKS[0]] * len(states), [0] * len(states), "train")
    for shown in (True, False):
        alone = states.copy()
        alone[:, :HELD], alone[:, HELD] = _AWAY, -1
        hidden = np.ones((len(states), _NUMBERS), dtype=bool)
        hidden[np.arange(len(states)), thing] = not shown
        _things(alone)[..., 2][hidden] = _NOWHERE_M
        env.restore(alone)
        pictures.append(env.frames().astype(np.int16))
    change = np.abs(pictures[0] - pictures[1]).sum(-1)
    return (255 * np.clip((change - _FAINT) / (_SURE - _FAINT), 0, 1)).round().astype(np.uint8)


def _things(states: np.ndarray) -> np.ndarray:  # a view [..., 8, 8]
    return states[..., _ENTITIES:].reshape(*states.shape[:-1], -1, _NUMBERS)
