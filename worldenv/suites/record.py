"""Episodes of the embedded suite, recorded step by step."""

import numpy as np

from worldenv.suites.tabletop.physics import Tabletop


class Record:
    """Frames, proprioception, actions and success of all episodes, from their present state on."""

    def __init__(self, env: Tabletop):
        self.env = env
        self.frames, self.proprio = [env.frames()], [env.proprio()]
        self.actions: list[np.ndarray] = []
        self.success: list[np.ndarray] = []

    def step(self, actions: np.ndarray) -> None:
        """Carry out actions [E, 7] and record what follows."""
        self.actions.append(actions)
        self.success.append(self.env.step(actions))
        self.frames.append(self.env.frames())
        self.proprio.append(self.env.proprio())

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """frames [E, T + 1, H, W, 3] uint8, proprio [E, T + 1, 7], actions [E, T, 7] float32, success [E, T] bool."""
        return tuple(np.stack(part, axis=1) for part in (self.frames, self.proprio, self.actions, self.success))
