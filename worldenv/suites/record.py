"""Episodes of the true environment, noted step by step."""

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.robot.camera import tabletop_camera
from worldenv.suites.tabletop.physics import Tabletop

VIEW = "agentview"  # the name of the suite's one view


class Record:
    """What is seen and done from the present state of all worlds on."""

    def __init__(self, env: Tabletop):
        self.env = env
        self.frames, self.proprio = [env.frames()], [env.proprio()]
        self.actions: list[np.ndarray] = []
        self.success: list[np.ndarray] = []

    def step(self, actions: np.ndarray) -> None:
        """Act [E, 7] in every world and note it."""
        self.actions.append(actions)
        self.success.append(self.env.step(actions))
        self.frames.append(self.env.frames())
        self.proprio.append(self.env.proprio())

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """frames [E, T + 1, H, W, 3] uint8, proprio [E, T + 1, 7], actions [E, T, 7] float32, success [E, T] bool."""
        return tuple(np.stack(part, axis=1) for part in (self.frames, self.proprio, self.actions, self.success))


def tabletop_trajectory(
    frames: np.ndarray,  # [T + 1, H, W, 3] uint8, H = W
    proprio: np.ndarray,  # [T + 1, 7] float32
    actions: np.ndarray,  # [T, 7] float32
    success: np.ndarray,  # [T] bool
    *labels: str | int,  # instruction, task, start, split, source
) -> Trajectory:
    """What the suite's one camera saw."""
    camera = tabletop_camera(frames.shape[1]).projection[None]
    return Trajectory(frames[:, None], proprio, actions, success, camera, (VIEW,), *labels)
