"""The true things of recorded episodes, as a simulator knows them: the labels of the composer are made of them."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class TrueThings(Protocol):
    """The true things of N recorded episodes of at most T actions. Every episode has D columns, one for each thing.

    An episode that has fewer than D things has columns without a thing, whose `movable` is False. The composer can be
    trained on a suite whose `Lessons.true_things` returns such an object.
    """

    centre: np.ndarray  # [N, T + 1, D, 3] float32 m, the middle of each thing; after an episode's end, as at its end
    held: np.ndarray  # [N, T + 1] int64, the thing that the gripper holds; -1: none
    movable: np.ndarray  # [N, D] bool, whether a gripper can move it
    size: tuple[int, int]  # H, W of the pictures, in pixels

    def coverage(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        thing: np.ndarray,  # [M] int64
    ) -> np.ndarray:  # [M, H, W] uint8
        """How much of every pixel of the first view a thing would cover if nothing hid it; 255: all of the pixel."""

    def occlusion(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        thing: np.ndarray,  # [M] int64
    ) -> tuple[np.ndarray, np.ndarray]:  # [M, H, W] bool, [M, H, W] uint8
        """Which pixels of the first view a thing covers, and how much of it nearer things hide there; 255: all.

        The robot does not count as a thing that hides. The second array is 0 in all pixels that the thing does not
        cover.
        """


class Beside(NamedTuple):
    """M chunks that were carried out after the gripper had been moved by an offset."""

    frames: np.ndarray  # [M, H, W, 3] uint8, of the first view, after the offset and before the chunk
    poses: np.ndarray  # [M, K + 1, P] float32, proprioception before the chunk and after each action
    things: TrueThings  # of the chunks: M episodes of K actions


@runtime_checkable
class Shiftable(Protocol):
    """True things of a simulator that can also move the gripper by an offset before a chunk.

    This is optional: with `TrueThings` alone, the contact network learns from recorded chunks only.
    """

    held_follows: bool  # whether a held thing moves with the gripper; if not, chunks that begin with one are not tried

    def beside(
        self,
        episode: np.ndarray,  # [M] int64
        step: np.ndarray,  # [M] int64
        offset: np.ndarray,  # [M, 3] m
        actions: np.ndarray,  # [M, K, A]
    ) -> Beside:
        """From each recorded state, move the gripper by an offset and carry out actions."""
