"""Episodes of a suite, noted step by step."""

from collections.abc import Sequence

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.interfaces.observation import Observation, Starts
from worldenv.interfaces.suite import Suite, Task


class Record:
    """What is seen and done in a suite from `begun` on, which its `reset` has just returned."""

    def __init__(self, suite: Suite, begun: Starts):
        self.suite, self.begun = suite, begun
        self.frames, self.proprio = [begun.seen.frames.numpy()], [begun.seen.proprio.numpy()]
        self.actions: list[np.ndarray] = []
        self.success: list[np.ndarray] = []

    def step(self, actions: np.ndarray) -> Observation:
        """Act [E, A] in every episode and note it; what is seen then."""
        seen, success = self.suite.step(actions)
        self.actions.append(actions)
        self.success.append(success)
        self.frames.append(seen.frames.numpy())
        self.proprio.append(seen.proprio.numpy())
        return seen

    def stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """frames [E, T + 1, V, H, W, 3] uint8, proprio [E, T + 1, P], actions [E, T, A] float32, success [E, T]."""
        return tuple(np.stack(part, axis=1) for part in (self.frames, self.proprio, self.actions, self.success))

    def trajectories(
        self,
        tasks: Sequence[Task],
        starts: Sequence[int],
        split: str,
        source: str,
        lengths: Sequence[int] | None = None,
    ) -> list[Trajectory]:
        """The episodes, each cut to its length (None: whole); one of length 0 is left out."""
        texts, camera, out = self.begun.instructions, self.begun.seen.camera, []
        lengths = [len(self.actions)] * len(texts) if lengths is None else lengths
        for i, (frames, proprio, actions, success) in enumerate(zip(*self.stacked(), strict=True)):
            if n := lengths[i]:
                parts = (frames[: n + 1], proprio[: n + 1], actions[:n], success[:n])
                seen_by = (None if camera is None else camera[i].numpy().copy(), self.suite.views)
                out.append(Trajectory(*parts, *seen_by, texts[i], tasks[i].name, int(starts[i]), split, source))
        return out
