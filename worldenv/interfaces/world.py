"""The interface of a world model: the learned environment in which a policy practises."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.slots import Slots
from worldenv.robot.robot import Robot


@dataclass
class Imagined(Slots):
    """Where a chunk of K actions leads B episodes."""

    frames: Tensor  # [B, K, V, H, W, 3] uint8, after each action
    proprio: Tensor  # [B, K, P] float32, likewise
    finite: Tensor  # [B] bool; False: something became infinite or not a number, and the episode counts for nothing
    doubt: Tensor | None = None  # [B] float32 in [0, 1], how unsure the model is that it comes so; None: it cannot tell
    camera: Tensor | None = None  # [B, K, V, 3, 4] float32, of each frame; None: all cameras stay where they are
    held: Tensor | None = None  # [B] bool, whether the gripper holds something at the end; None: it cannot tell


@runtime_checkable
class WorldModel(Protocol):
    """Imagines what the cameras see next. It owns the robot's kinematics, the noise levels and its passes.

    One that can leave proprioception as it was says so by `moves_proprio`, False; then it is refused to policies but
    those that say by `reads_proprio`, False, that they do not look at it. One that tells what is `held` says so by
    `tells_held`, True.
    """

    chunk: int  # frames of one pass of the network: actions in chunks of this length, or a multiple, cost least
    views: tuple[str, ...]  # V
    size: tuple[int, int]  # H, W
    robot: Robot

    @property
    def device(self) -> torch.device:
        """Where the model is, and so where episodes are."""

    def begin(self, seen: Observation, chunk: int) -> Slots:
        """The memory of episodes that begin with this observation and then act in chunks of `chunk` actions.

        Raises UserError for a length of chunk that the model cannot imagine. May keep no view of `seen`.
        """

    def imagine(self, memory: Slots, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """What follows from the present observation and a chunk of actions [B, K, A]; moves `memory` on in place."""
