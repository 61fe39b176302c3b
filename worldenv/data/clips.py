"""Trajectories in memory, padded to one length: what every training stage draws its batches from."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from worldenv.data.trajectories import Trajectory
from worldenv.nn.instruction import tokenize


@dataclass(frozen=True)
class Clips:
    """N trajectories of at most T steps; entries past `length` repeat the last one and carry no information."""

    frames: Tensor  # [N, T + 1, H, W, 3] uint8
    proprio: Tensor  # [N, T + 1, 7] float32
    actions: Tensor  # [N, T, 7] float32, zeros past length
    success: Tensor  # [N, T + 1] bool, of the state that the frame shows
    length: Tensor  # [N] int64, steps
    tokens: Tensor  # [N, L] int64
    tasks: tuple[str, ...]  # [N]

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> "Clips":
        """Pad and stack. Raises ValueError if there are none or their pictures differ in size."""
        sizes = {t.frames.shape[1:] for t in trajectories}
        if len(sizes) != 1:
            raise ValueError(
                f"trajectories should be at least one, with pictures of one size; sizes are {sorted(sizes)}"
            )
        steps = max(len(t.actions) for t in trajectories)
        frames = np.empty((len(trajectories), steps + 1, *sizes.pop()), dtype=np.uint8)
        proprio = np.empty((len(trajectories), steps + 1, 7), dtype=np.float32)
        actions = np.zeros((len(trajectories), steps, 7), dtype=np.float32)
        success = np.zeros((len(trajectories), steps + 1), dtype=bool)
        for i, t in enumerate(trajectories):
            n = len(t.actions)
            frames[i, : n + 1], frames[i, n + 1 :] = t.frames, t.frames[-1]
            proprio[i, : n + 1], proprio[i, n + 1 :] = t.proprio, t.proprio[-1]
            actions[i, :n] = t.actions
            success[i, 1 : n + 1], success[i, n + 1 :] = t.success, t.success[-1]
        return cls(
            *(torch.from_numpy(a) for a in (frames, proprio, actions, success)),
            torch.tensor([len(t.actions) for t in trajectories]),
            tokenize([t.instruction for t in trajectories]),
            tuple(t.task for t in trajectories),
        )

    def pick(self, index: Tensor) -> "Clips":
        """The clips [M] int64 of that index."""
        rows = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "tasks"}
        return Clips(**rows, tasks=tuple(self.tasks[i] for i in index.tolist()))

    def action_chunks(
        self,
        episode: Tensor,  # [B] int64
        step: Tensor,  # [B] int64, < length
        chunk: int,
    ) -> Tensor:  # [B, K, 7]
        """The K actions that follow a frame; past the end the last one is repeated."""
        index = torch.minimum(step[:, None] + torch.arange(chunk), self.length[episode, None] - 1)
        return self.actions[episode[:, None], index]
