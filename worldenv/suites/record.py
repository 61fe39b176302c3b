"""Episodes of the true environment, noted step by step."""

import numpy as np

from worldenv.suites.tabletop.physics import Tabletop


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
