"""What a suite's expert leaves of an episode."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from worldenv.data.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode of an expert, successful or not. A trajectory has the actions that it meant, not those disturbed."""

    success: bool
    steps: int
    told: str  # what the expert did, and how it went
    trajectory: Trajectory | None = None  # None: it failed, or nobody looked
    extras: Mapping[str, np.ndarray | str] = field(default_factory=dict)  # what write_libero takes beside it
