"""Noise levels of a sampler."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

from worldenv.errors import UserError
from worldenv.ops.philox import USES, Use
from worldenv.records.checkpoint import CheckpointError

MOST = USES - Use.AGAIN  # every step draws random numbers of its own


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The noise levels. Raises UserError unless they begin with 1 (pure noise), fall, and stay above 0."""
    if not isinstance(levels, Sequence) or not all(isinstance(x, Real) for x in levels) or len(levels) > MOST:
        raise UserError(f"levels is {str(levels)[:100]!r}; it should be a sequence of at most {MOST} numbers")
    levels = tuple(levels)
    if not levels or levels[0] != 1 or not levels[-1] > 0 or any(not a > b for a, b in pairwise(levels)):
        raise UserError(f"levels is {levels}; they should begin with 1.0 and fall, all above 0")
    return levels


def levels_of(path: Path, metadata: Mapping[str, Any]) -> tuple[float, ...]:
    """The noise levels in the metadata of a world model's file. Raises CheckpointError for others than those above."""
    try:
        return check_levels(metadata.get("levels"))
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
