"""The range of every number of a recorded action, and the way to [-1, 1] and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.robot.kinematics import is_number

SLACK = 1e-6  # beyond [-1, 1], from rounding


@dataclass(frozen=True)
class ActionBounds:
    """Least and greatest value of each number of an action, in the robot's units (radians, metres, ...).

    Policies and world models see actions in [-1, 1]: -1 is `low`, 1 is `high`. A number whose bounds are equal is 0.
    Raises UserError unless both are as many finite numbers, at least one, and no lower bound is above the upper.
    """

    low: tuple[float, ...]  # [A]
    high: tuple[float, ...]  # [A]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not values or not all(map(is_number, values)):
                raise UserError(f"{name} of the action bounds is {shown(values)}; it should be finite numbers")
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.low) != len(self.high):
            raise UserError(f"the action bounds have {len(self.low)} lower and {len(self.high)} upper numbers")
        if wrong := [i for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low > high]:
            raise UserError(f"the lower bound of action {wrong[0]} is above the upper one")

    @classmethod
    def of(cls, actions: Iterable[np.ndarray]) -> "ActionBounds":
        """The least and greatest values of episodes, each [T, A]."""
        actions = list(actions)
        low, high = (np.stack([end(a, axis=0) for a in actions]) for end in (np.min, np.max))
        return cls(tuple(low.min(0).tolist()), tuple(high.max(0).tolist()))

    def scaled(self, actions: np.ndarray) -> np.ndarray:  # [T, A] robot's units -> [T, A] float32 in [-1, 1]
        """Actions as policies and world models see them. Raises UserError if one lies outside of the bounds."""
        low, span = self._check(actions)
        scaled = np.where(span > 0, 2 * (actions - low) / np.where(span > 0, span, 1) - 1, actions - low)
        if (outside := np.abs(scaled) > 1 + SLACK).any():
            row, i = np.argwhere(outside)[0].tolist()
            raise UserError(
                f"action {i} is {actions[row, i]:g} at row {row}, outside of its bounds {self.low[i]:g} to "
                f"{self.high[i]:g}: give wider bounds, or those of these recordings"
            )
        return scaled.clip(-1, 1).astype(np.float32)

    def restored(self, scaled: np.ndarray) -> np.ndarray:  # [..., A] in [-1, 1] -> [..., A] float32, robot's units
        """What the robot is to do, of an action in [-1, 1]."""
        low, span = self._check(scaled)
        return (low + span * (scaled.astype(np.float64) + 1) / 2).astype(np.float32)

    def _check(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # low, high - low
        if actions.shape[-1] != len(self.low):
            raise UserError(f"an action has {actions.shape[-1]} numbers, the bounds have {len(self.low)}")
        low = np.array(self.low)
        return low, np.array(self.high) - low
