"""The true places of the things on the tables, and what each covers of the picture: labels to train with."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from worldenv.data.clips import Clips
from worldenv.interfaces.true_things import Beside
from worldenv.suites.tabletop.physics import Tabletop, task_by_name
from worldenv.suites.tabletop.scenes import KINDS, TASKS

HELD = 7  # column of a state (csrc/tabletop/world.h): index of the thing in the gripper, -1 for none
_ENTITIES, _NUMBERS = 15, 8  # first column of the things, and numbers of each
_AWAY = (0.19, 0.21, 0.2, 0, 0, 0, 1)  # a gripper that hides nothing
_STILL = np.array((0, 0, 0, 0, 0, 0, 1), dtype=np.float32)  # an action: the gripper stands still and is closed
_NOWHERE_M = 5.0
_FAINT, _SURE = 15, 60  # of 765: changes of a pixel by which a thing covers none of it, and all of it
_PAINTS = 2, 7  # the colours blue and white
_THERE = 60  # of 765: a thing is in a pixel that changes by more than this when the thing changes from blue to white


class TabletopThings:
    """`TrueThings` of N episodes, from the states of the simulator."""

    held_follows = True

    def __init__(self, states: np.ndarray, size: int):  # [N, T + 1, 79], pixels
        self.states, self.size = states, (size, size)
        self.centre, self.held = centres(states), states[:, :, HELD].astype(np.int64)
        self.movable = movable(states[:, 0])

    @classmethod
    def of(cls, clips: Clips) -> Self:
        """The true things of recorded episodes of the suite, whose actions are carried out again."""
        tasks, starts, splits = zip(*clips.begun(), strict=True)
        states = np.zeros((*clips.proprio.shape[:2], 79))
        for split in {*splits}:
            rows = np.flatnonzero(np.array(splits) == split)
            given = [tasks[i] for i in rows], [starts[i] for i in rows]
            states[rows] = act_out(*given, split, clips.actions.numpy()[rows])
        return cls(states, clips.frame_shape[1])

    def coverage(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> np.ndarray:  # [M] int64 each
        return coverage(self.states[episode, step], thing, self.size[0])

    def occlusion(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return occlusion(self.states[episode, step], thing, self.size[0])

    def beside(self, episode: np.ndarray, step: np.ndarray, offset: np.ndarray, actions: np.ndarray) -> Beside:
        """From states [M] of these episodes, move the gripper by offsets [M, 3] (m) and carry out actions [M, K, 7].

        A gripper that holds a thing first stands still for one step, in which the thing follows it and pushes others.
        """
        env = Tabletop(self.size[0])
        limits = np.array(env.kinematics.low[:3]), np.array(env.kinematics.high[:3])
        begun = self.states[episode, step].copy()
        begun[:, :3] = np.where(offset == 0, begun[:, :3], (begun[:, :3] + offset).clip(*limits))
        env.reset([TASKS[0]] * len(begun), [0] * len(begun), "train")
        env.restore(begun)
        env.step(np.tile(_STILL, (len(begun), 1)))
        env.restore(np.where(begun[:, HELD : HELD + 1] >= 0, env.state(), begun))
        frames, states = env.frames(), [env.state()]
        for action in actions.swapaxes(0, 1):
            env.step(action)
            states.append(env.state())
        states = np.stack(states, axis=1)
        return Beside(frames, states[:, :, :7].astype(np.float32), TabletopThings(states, self.size[0]))


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
    """How much of every pixel a thing would cover if nothing hid it, uint8; 255: all of the pixel."""
    nothing = _away(states)
    _things(nothing)[..., 2] = _NOWHERE_M
    change = _change(_alone(states, thing), nothing, size)
    return (255 * np.clip((change - _FAINT) / (_SURE - _FAINT), 0, 1)).round().astype(np.uint8)


def occlusion(
    states: np.ndarray,  # [N, 79]
    thing: np.ndarray,  # [N] int
    size: int,
) -> tuple[np.ndarray, np.ndarray]:  # [N, size, size] bool, [N, size, size] uint8
    """Which pixels a thing covers, and how much of it nearer things hide there; 255: all.

    The gripper does not count as a thing that hides. The second array is 0 in all pixels that the thing does not cover.
    """
    seen, whole = (
        _change(*(_painted(scene, thing, paint) for paint in _PAINTS), size)
        for scene in (_away(states), _alone(states, thing))
    )
    is_there = whole > _THERE
    return is_there, np.where(is_there, 255 * (1 - seen / whole.clip(1)).clip(0, 1), 0).round().astype(np.uint8)


def _away(states: np.ndarray) -> np.ndarray:
    """The same scenes with the gripper far away."""
    out = states.copy()
    out[:, :HELD], out[:, HELD] = _AWAY, -1
    return out


def _alone(states: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """One thing in each scene, and no gripper."""
    out, others = _away(states), np.ones((len(states), _NUMBERS), dtype=bool)
    others[np.arange(len(states)), thing] = False
    _things(out)[..., 2][others] = _NOWHERE_M
    return out


def _painted(states: np.ndarray, thing: np.ndarray, paint: int) -> np.ndarray:
    out = states.copy()
    _things(out)[np.arange(len(states)), thing, 1] = paint
    return out


def _change(one: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:  # [N, 79] each -> [N, size, size] int16
    """The absolute difference between the pictures of two states, summed over the three colour channels."""
    env, pictures = Tabletop(size), []
    env.reset([TASKS[0]] * len(one), [0] * len(one), "train")
    for states in (one, other):
        env.restore(states)
        pictures.append(env.frames().astype(np.int16))
    return np.abs(pictures[0] - pictures[1]).sum(-1, dtype=np.int16)


def _things(states: np.ndarray) -> np.ndarray:  # a view [..., 8, 8]
    return states[..., _ENTITIES:].reshape(*states.shape[:-1], -1, _NUMBERS)
