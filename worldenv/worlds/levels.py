"""Noise levels of a sampler."""

from collections.abc import Sequence
from itertools import pairwise


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The noise levels. Raises ValueError unless they begin with 1 (pure noise), fall, and stay above 0."""
    levels = tuple(levels)
    if not levels or levels[0] != 1 or not levels[-1] > 0 or any(not a > b for a, b in pairwise(levels)):
        raise ValueError(f"levels is {levels}; they should begin with 1.0 and fall, all above 0")
    return levels
