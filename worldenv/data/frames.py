"""The frames of many episodes, in memory or on disk: what a batch needs is fetched, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldenv.data.formats.demos import Demo, read_frames
from worldenv.data.formats.opened import OpenFiles


@dataclass(frozen=True, eq=False)
class MemoryFrames:
    """The frames of all episodes, one episode after the other."""

    rows: Tensor  # [R, V, H, W, 3] uint8
    begin: Tensor  # [N] int64, row of an episode's first frame

    @classmethod
    def padded(cls, frames: Tensor) -> "MemoryFrames":  # [N, T + 1, V, H, W, 3] uint8
        """Episodes in one tensor."""
        return cls(frames.flatten(0, 1), torch.arange(len(frames)) * frames.shape[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, H, W."""
        return tuple(self.rows.shape[1:4])

    def at(self, episode: Tensor, step: Tensor) -> Tensor:  # [B], [B, M] int64 -> [B, M, V, H, W, 3] uint8
        """Frames of steps that are there."""
        return self.rows[self.begin[episode, None] + step]

    def pick(self, index: Tensor) -> "MemoryFrames":
        """The episodes [M] int64 of that index; nothing is copied."""
        return MemoryFrames(self.rows, self.begin[index])


class StoredFrames:
    """Frames that stay in their HDF5 files and are read on demand; may go to other processes."""

    def __init__(self, demos: Sequence[Demo], files: OpenFiles) -> None:
        self.demos, self._files = tuple(demos), files

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, H, W."""
        return (len(self.demos[0].views), *self.demos[0].size)

    def at(self, episode: Tensor, step: Tensor) -> Tensor:  # [B], [B, M] int64 -> [B, M, V, H, W, 3] uint8
        """Frames of steps that are there; those of one episode are read together, each once."""
        episodes, steps = episode.numpy(), step.numpy()
        out = np.empty((*steps.shape, *self.shape, 3), np.uint8)
        for number in np.unique(episodes):  # in the order of the files
            rows, demo = np.flatnonzero(episodes == number), self.demos[number]
            wanted, place = np.unique(steps[rows], return_inverse=True)
            found = np.empty((len(wanted), *self.shape, 3), np.uint8)
            with self._files.use(demo.path) as file:
                read_frames(file, demo, wanted, found)
            out[rows] = found[place.reshape(len(rows), -1)]
        return torch.from_numpy(out)

    def pick(self, index: Tensor) -> "StoredFrames":
        """The episodes [M] int64 of that index."""
        return StoredFrames([self.demos[i] for i in index.tolist()], self._files)
