"""Episodes of a suite, recorded step by step."""

import copy
from collections.abc import Sequence

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.interfaces.observation import Observation, Starts
from worldenv.interfaces.suite import Suite, Task


class Record:
    """Records the episodes that a suite has just begun: `begun` is what its `reset` returned.

    It keeps copies: a suite may write the next step into the same arrays.
    """

    def __init__(self, suite: Suite, begun: Starts):
        self.suite, self.begun = suite, begun
        self.frames, self.proprio = [begun.seen.frames.numpy().copy()], [begun.seen.proprio.numpy().copy()]
        self.cameras: list[np.ndarray | None] = []  # one array again and again while no camera moves
        self._note_camera(begun.seen)
        self.actions: list[np.ndarray] = []
        self.success: list[np.ndarray] = []

    def step(self, actions: np.ndarray, disturbed: np.ndarray | None = None) -> Observation:
        """Carry out actions [E, A] and record what follows; returns the new observation.

        `disturbed` [E, A] is carried out in their place, and not recorded: so the one who acts shows its way back.
        """
        self.actions.append(actions.copy())
        seen, success = self.suite.step(actions if disturbed is None else disturbed)
        self.success.append(copy.copy(success))
        self.frames.append(seen.frames.numpy().copy())
        self.proprio.append(seen.proprio.numpy().copy())
        self._note_camera(seen)
        return seen

    def _note_camera(self, seen: Observation) -> None:
        camera, last = None if seen.camera is None else seen.camera.numpy(), self.cameras[-1] if self.cameras else None
        stands = camera is None or (last is not None and np.array_equal(camera, last))
        self.cameras.append(last if stands else camera.copy())

    def _camera(self, row: int, length: int) -> np.ndarray | None:  # [V, 3, 4]; [length + 1, V, 3, 4] if one moves
        first, *others = self.cameras[: length + 1]
        if first is None or all(camera is first for camera in others):
            return None if first is None else first[row].copy()
        return np.stack([camera[row] for camera in (first, *others)])

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
        texts, out = self.begun.instructions, []
        lengths = [len(self.actions)] * len(texts) if lengths is None else lengths
        for i, (frames, proprio, actions, success) in enumerate(zip(*self.stacked(), strict=True)):
            if n := lengths[i]:
                parts = (frames[: n + 1], proprio[: n + 1], actions[:n], success[:n])
                labels = (texts[i], tasks[i].name, int(starts[i]), split, source)
                out.append(Trajectory(*parts, self._camera(i, n), self.suite.views, *labels))
        return out
