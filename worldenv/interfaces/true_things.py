"""What the labels of layers and contacts are made of: the true things of recorded episodes, which a simulator knows."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class TrueThings(Protocol):
    """The true things of N recorded episodes, D of each; where one has fewer, the others never move.

    A suite for whose episodes there are such things can train the composer: `Lessons.true_things` gives them.
    """

    centre: np.ndarray  # [N, T + 1, D, 3] float32 m, the middle of each thing; past an episode's end as at its end
    held: np.ndarray  # [N, T + 1] int64, the thing that the gripper holds; -1: none
    movable: np.ndarray  # [N, D] bool, whether a gripper can move it
    size: tuple[int, int]  # H, W, of the pictures

    def coverage(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        thing: np.ndarray,  # [M] int64
    ) -> np.ndarray:  # [M, H, W] uint8
        """How much of every pixel of the first view a thing covers where nothing hides it, 255: all."""

    def occlusion(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        thing: np.ndarray,  # [M] int64
    ) -> tuple[np.ndarray, np.ndarray]:  # [M, H, W] bool, [M, H, W] uint8
        """Where a thing is in the picture, and how much of it nearer things hide there, 255: all.

        The robot hides nothing. Where the thing is not, nothing of it is hidden.
        """


class Beside(NamedTuple):
    """M chunks that were carried out by a gripper that stood elsewhere."""

    frames: np.ndarray  # [M, H, W, 3] uint8, of the first view, before each
    poses: np.ndarray  # [M, K + 1, P] float32, proprioception, the first before the chunk
    things: TrueThings  # of M episodes of K actions


@runtime_checkable
class Shiftable(Protocol):
    """True things of a simulator that can set the gripper elsewhere. `TrueThings` without it are labels enough."""

    def beside(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        offset: np.ndarray,  # [M, 3] m
        actions: np.ndarray,  # [M, K, A]
    ) -> Beside:
        """Carry out actions from recorded states, in which the gripper is moved by an offset before."""
