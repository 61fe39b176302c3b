"""Noise levels of a sampler."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.ops.philox import Use
from worldenv.records.checkpoint import CheckpointError

MOST = Use.GRASP - Use.AGAIN  # every level is one more pass, which draws random numbers of its own


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The noise levels. Raises UserError unless they begin with 1 (pure noise), fall, and stay above 0."""
    given = isinstance(levels, list | tuple) and all(isinstance(x, Real) and not isinstance(x, bool) for x in levels)
    fall = given and 0 < len(levels) <= MOST and levels[0] == 1 and levels[-1] > 0
    if not fall or any(not a > b for a, b in pairwise(levels)):
        raise UserError(f"levels is {shown(levels)}; they should begin with 1.0 and fall, all above 0; at most {MOST}")
    return tuple(levels)


def levels_of(path: Path, metadata: Mapping[str, Any]) -> tuple[float, ...]:
    """The noise levels in the metadata of a world model's file. Raises CheckpointError for others than those above."""
    try:
        return check_levels(metadata.get("levels"))
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
