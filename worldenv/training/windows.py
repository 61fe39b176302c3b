"""Random moments of recorded episodes: the frames that a pass of a world model knows, and those that it imagines."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.errors import UserError


@dataclass(frozen=True)
class Window:
    """B moments, each of an episode that began at its `first` step."""

    episode: Tensor  # [B] int64
    first: Tensor  # [B] int64
    present: Tensor  # [B] int64, at or after the first
    index: Tensor  # [B, M + K] int64, steps of the known frames and of those to come


class Windows:
    """Draws batches of windows. The memory is what it would be if the episode had begun at the first step.

    Raises UserError if no clip has as many steps as a chunk, or if the frames have another size.
    """

    def __init__(self, clips: Clips, size: int, memory: int, chunk: int, batch: int):
        self.clips, self.memory, self.chunk, self.batch = clips, memory, chunk, batch
        self.usable = (clips.length >= chunk).nonzero()[:, 0]
        if not len(self.usable):
            raise UserError(f"the longest clip has {int(clips.length.max())} steps; a chunk is {chunk}")
        if clips.frame_shape[1:] != (size, size):
            raise UserError(f"the frames are {clips.frame_shape[1:]}; the world model's are {size} pixels square")

    def __call__(self, generator: torch.Generator) -> Window:
        episode = self.usable[torch.randint(len(self.usable), (self.batch,), generator=generator)]
        last = self.clips.length[episode] - self.chunk
        present = (torch.rand(self.batch, generator=generator) * (last + 1)).long()
        first = (torch.rand(self.batch, generator=generator) * (present + 1)).long()
        return Window(episode, first, present, steps_of(first, present, self.memory, self.chunk))


def steps_of(first: Tensor, present: Tensor, memory: int, chunk: int) -> Tensor:  # [B], [B] -> [B, M + K]
    """Steps of the memory's frames (the first one, and the latest up to the present) and of the chunk's frames."""
    latest = present[:, None] + torch.arange(2 - memory, 1)
    latest = torch.maximum(latest, first[:, None])
    return torch.cat([first[:, None], latest, present[:, None] + 1 + torch.arange(chunk)], dim=1)
