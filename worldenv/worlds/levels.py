"""Noise levels of a sampler."""

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

from worldenv.errors import UserError
from worldenv.fields import shown

MOST_LEVELS = 1000  # each is one more pass of the network


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The noise levels. Raises UserError unless they begin with 1 (pure noise), fall, and stay above 0."""
    given = isinstance(levels, list | tuple) and all(isinstance(x, Real) and not isinstance(x, bool) for x in levels)
    fall = given and 0 < len(levels) <= MOST_LEVELS and levels[0] == 1 and levels[-1] > 0
    if not fall or any(not a > b for a, b in pairwise(levels)):
        raise UserError(
            f"levels is {shown(levels)}; they should begin with 1.0 and fall, all above 0; at most {MOST_LEVELS}"
        )
    return tuple(levels)
