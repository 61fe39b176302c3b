"""dataset_statistics.json: how the numbers of actions and of proprioception were normalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.files import read_json
from worldenv.policy.openvla_oft.config import OpenVLAConventions
from worldenv.records.checkpoint import CheckpointError
from worldenv.robot.kinematics import is_number

FILE = "dataset_statistics.json"
TINY = 1e-8  # that the authors add to a range
LEAST_RANGE = 1e-3  # |factor| of an action, for its scale: a number that never moved has a range of 0


@dataclass(frozen=True)
class Bounds:
    """What becomes -1 and 1, of n numbers, and whether it does."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]  # False: the number is not normalised


def read_statistics(
    folder: Path,
    config: Mapping[str, Any],  # config.json: older folders keep the statistics there
    wanted: str | None,  # the entry; None: that of the suite, or the only one
    suite: str,
    ends: tuple[str, str],
) -> dict[str, Bounds]:  # "action", and "proprio" if it is there
    """The bounds of one data set.

    Raises CheckpointError, with the names that there are, if the statistics are missing or not those of the suite.
    """
    path = folder / FILE
    inner = config.get("norm_stats")
    kept = dict(inner) if isinstance(inner, dict) else {}
    if path.exists():
        kept |= read_json(path)
    if not kept:
        raise CheckpointError(f"{folder} has no {FILE}, so its actions have no units; copy it from the release")
    tried = (wanted,) if wanted is not None else (suite, f"{suite}_no_noops")
    name = next((name for name in tried if name in kept), None)
    if name is None and wanted is None and len(kept) == 1:
        (name,) = kept
    if name is None:
        raise CheckpointError(
            f"{path} has no statistics of {tried[0]!r}; it has {', '.join(sorted(kept))[:300]}: name one of them, "
            "the `statistics` of OpenVLAConfig"
        )
    entry = kept[name] if isinstance(kept[name], dict) else {}
    where = f"{path}, {name}"
    found = {"action": _bounds(where, entry, "action", ends)}
    return found | ({"proprio": _bounds(where, entry, "proprio", ends)} if "proprio" in entry else {})


def _bounds(where: str, entry: Mapping[str, Any], part: str, ends: tuple[str, str]) -> Bounds:
    numbers = entry.get(part)
    numbers = numbers if isinstance(numbers, dict) else {}
    low, high = (numbers.get(end) for end in ends)
    for end, values in zip(ends, (low, high), strict=True):
        if not isinstance(values, list) or not values or not all(map(is_number, values)):
            raise CheckpointError(f"{where}: {part} has no {end}, a list of numbers; copy the file again")
    mask = numbers.get("mask", [True] * len(low))
    if not isinstance(mask, list) or not len(low) == len(high) == len(mask):
        raise CheckpointError(f"{where}: the lists of {part} differ in length; copy the file again")
    if any(not a <= b for a, b in zip(low, high, strict=True)):
        raise CheckpointError(f"{where}: {ends[0]} of {part} is above {ends[1]}; copy the file again")
    return Bounds(tuple(low), tuple(high), tuple(map(bool, mask)))


def _tensors(bounds: Bounds) -> tuple[Tensor, Tensor, Tensor]:  # low, high float64, mask bool
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (bounds.low, bounds.high))
    return low, high, torch.tensor(bounds.mask)


class Units(nn.Module):
    """Between the policy's normalised numbers and those of the environment: an affine map of each number.

    Of an action, theirs is .5 (n + 1) (high - low + 1e-8) + low where the mask says so, and then the gripper's own map.
    """

    def __init__(self, action: Bounds, proprio: Bounds | None, conventions: OpenVLAConventions):
        super().__init__()
        low, high, mask = _tensors(action)
        half = 0.5 * (high - low + TINY)
        factor, offset = torch.where(mask, half, 1.0), torch.where(mask, half + low, 0.0)
        gripper = conventions.gripper
        factor = torch.cat([factor[:-1], factor[-1:] * gripper[0]])
        offset = torch.cat([offset[:-1], offset[-1:] * gripper[0] + gripper[1]])
        self.register_buffer("factor", factor.float(), persistent=False)  # [A]
        self.register_buffer("offset", offset.float(), persistent=False)  # [A]
        self.has_proprio = proprio is not None
        if proprio is not None:
            rows = torch.tensor(conventions.proprio), torch.tensor(conventions.proprio_factor), *_tensors(proprio)
            for name, row in zip(("index", "times", "low", "high", "mask"), rows, strict=True):
                self.register_buffer(name, row.float() if row.is_floating_point() else row, persistent=False)

    def action(self, normalised: Tensor) -> Tensor:  # [B, K, A] -> [B, K, A] float32, the environment's
        """What the environment is to do."""
        return normalised.float() * self.factor + self.offset

    def log_scale(self, beta: Tensor) -> Tensor:  # [B, K, A] -> [B, K, A] float32
        """The logarithm of a scale, in the environment's units."""
        return beta.float() + self.factor.abs().clamp(min=LEAST_RANGE).log()

    def proprio(self, proprio: Tensor) -> Tensor:  # [B, P] float32 -> [B, n] float32 in [-1, 1]
        """Proprioception as the policy reads it: clip(2 (x - low) / (high - low + 1e-8) - 1, -1, 1)."""
        theirs = proprio[:, self.index] * self.times
        normalised = 2 * (theirs - self.low) / (self.high - self.low + TINY) - 1
        return torch.where(self.mask, normalised, theirs).clamp(-1, 1)
