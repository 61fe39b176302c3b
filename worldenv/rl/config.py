"""How a policy practises: the fields of `worldenv-train --rl.*`."""

import math
from dataclasses import dataclass

from worldenv.errors import UserError


@dataclass(frozen=True)
class PostTrainConfig:
    """How the policy practises in imagination."""

    iterations: int = 36
    starts: int = 24  # N, start states per iteration
    siblings: int = 8  # G, rollouts of one start (paper: N = 8)
    clip: float = 0.2  # eps (paper: 0.1)
    learning_rate: float = 4e-4  # the highest one; it falls to a tenth: the rollouts of an iteration are few and noisy
    warmup: int = 4  # iterations over which the learning rate rises, because Adam's first steps are its most random
    epochs: int = 2  # passes over an iteration's chunks
    minibatch: int = 256  # chunks per step of the optimizer
    accumulate: int | None = None  # chunks per backward pass; gradients add up to a whole minibatch; None: all at once
    signal: float = 0.25  # a group of siblings whose advantages are all smaller is left out: they differ by chance
    max_skipped: int = 20  # updates with a non-finite loss or gradient before the run ends

    def __post_init__(self) -> None:
        counts = (self.iterations, self.starts, self.epochs, self.minibatch, self.accumulate)
        if min(count for count in counts if count is not None) < 1:
            raise UserError(f"iterations, starts, epochs, minibatch and accumulate must be positive: {self}")
        if self.siblings < 2:
            raise UserError(f"siblings is {self.siblings}; leave-one-out needs at least 2 rollouts of a start")
        if not 0 < self.clip < 1 or not 0 < self.learning_rate < math.inf:
            raise UserError(f"clip must lie in (0, 1) and learning_rate be positive and finite: {self}")
        if not 0 <= self.signal <= 1 or self.max_skipped < 0:
            raise UserError(f"signal must lie in [0, 1] and max_skipped not be negative: {self}")
        if self.warmup < 1:
            raise UserError(f"warmup is {self.warmup}; it should be at least 1 (the full learning rate from the start)")

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration (from 0): rises over `warmup`, falls to a tenth over all iterations."""
        return self.learning_rate * min(1.0, (iteration + 1) / self.warmup) * (1 - 0.9 * iteration / self.iterations)
