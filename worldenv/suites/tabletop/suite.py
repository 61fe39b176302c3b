"""The embedded suite: the physics behind the interface `Suite`."""

from collections.abc import Sequence

import numpy as np
import torch

from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.interfaces.suite import Things
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.detector import find_things
from worldenv.suites.tabletop.physics import HORIZON, Tabletop
from worldenv.suites.tabletop.scenes import TASKS, Task

VIEW = "agentview"
CLEAR_M = 0.06  # m: fingertips above it touch nothing that stands on the table


class TabletopSuite:
    """Ten language tasks of a gripper over a table, seen by one fixed pinhole camera; `physics` simulates."""

    name, tasks, horizon, views = "tabletop", TASKS, HORIZON, (VIEW,)

    def __init__(self, image_size: int = 64):
        self.physics = Tabletop(image_size)
        self.robot = moved_gripper(self.physics.kinematics, clear_m=CLEAR_M)

    def reset(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> Starts:
        """Begin one episode for each (task, start state). Raises UserError for an unknown split."""
        self.physics.reset(tasks, starts, split)
        texts, self._text = table_of(self.physics.instructions)
        return Starts(self._observe(), texts)

    def step(self, action: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Carry out one action [E, 7]; the new observation, and whether each task is done [E] bool."""
        success = self.physics.step(action)
        return self._observe(), success

    def find_things(self, frames: np.ndarray, tasks: Sequence[Task]) -> Things:
        """Blocks, cans and pucks in frames [N, T, V, H, W, 3] uint8, by colour; see the detector."""
        return find_things(frames, tasks)

    def _observe(self) -> Observation:
        camera = torch.from_numpy(self.physics.camera.projection).expand(len(self.physics), 1, 3, 4)
        frames, proprio = torch.from_numpy(self.physics.frames()), torch.from_numpy(self.physics.proprio())
        return Observation(frames[:, None], proprio, camera, self._text)
