"""What a robot sees at one moment, where episodes begin, and what their random numbers depend on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.slots import Slots


@dataclass
class Observation(Slots):
    """What E episodes show: pictures, the robot's own state, the cameras, and the number of the instruction."""

    frames: Tensor  # [E, V, H, W, 3] uint8, one picture per view
    proprio: Tensor  # [E, P] float32, as the robot reports it
    camera: Tensor | None  # [E, V, 3, 4] float32, world point (m) -> homogeneous pixel; None: not calibrated
    text: Tensor  # [E] int64, row of the table of instructions


def shown_to(seen: Observation, have: tuple[str, ...], want: tuple[str, ...]) -> Observation:
    """The observation with the views `want`, in that order, of those that it has."""
    if have == want:
        return seen
    frames = torch.stack([seen.frames[:, have.index(view)] for view in want], dim=1)
    camera = seen.camera
    if camera is not None:
        camera = torch.stack([camera[:, have.index(view)] for view in want], dim=1)
    return replace(seen, frames=frames, camera=camera)


@dataclass
class Starts:
    """N first observations and the table of instructions that their `text` counts."""

    seen: Observation
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.seen)

    def pick(self, index: Tensor) -> "Starts":
        """The starts of some rows [M] int64, with the same table. Raises UserError for rows that do not exist."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            found = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else f"a {type(index).__name__}"
            raise UserError(f"index is {found}; it should be a tensor torch.int64 [M]")
        if index.device != self.device:
            raise UserError(f"index is on {index.device}, the starts are on {self.device}; move it: index.to(device)")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise UserError(f"index has rows {int(index.min())} to {int(index.max())}; there are {len(self)} starts")
        return Starts(self.seen.each(lambda tensor: tensor.index_select(0, index)), self.texts)

    def to(self, device: torch.device | str) -> "Starts":
        return Starts(self.seen.each(lambda tensor: tensor.to(device)), self.texts)

    @property
    def device(self) -> torch.device:
        return self.seen.frames.device

    @property
    def instructions(self) -> list[str]:
        """The instruction of every start, N strings."""
        return [self.texts[row] for row in self.seen.text.tolist()]


class Key(NamedTuple):
    """What the random numbers of B episodes depend on, and on nothing else: not on slot, batch, thread or device."""

    seed: int
    episode: Tensor  # [B] int64, ids
    chunk: Tensor  # [B] int64, chunks acted before


def table_of(instructions: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:  # distinct strings; [N] int64 rows of it
    """The table of instructions of N episodes, in alphabetical order, and each episode's row in it, on the CPU.

    Raises UserError unless all are strings.
    """
    several = isinstance(instructions, Iterable) and not isinstance(instructions, str)
    if not several or not all(isinstance(text, str) for text in instructions):
        raise UserError(f"instructions is {shown(instructions)}; it should be a sequence of strings")
    texts = tuple(sorted(set(instructions)))
    row = {text: i for i, text in enumerate(texts)}
    return texts, torch.tensor([row[text] for text in instructions], dtype=torch.int64, device="cpu")
