"""How a policy practises: the fields of `worldenv-train --rl.*`."""

from dataclasses import dataclass, field
from typing import Literal

from worldenv.fields import ADDED, COUNT, MOST, SHARE, FieldError, Within, check_fields


@dataclass(frozen=True)
class PostTrainConfig:
    """How the policy practises in imagination."""

    iterations: int = 96  # more can be added later; the learning-rate schedule is then that of the longer run
    starts: int = 24  # N, start states per iteration
    siblings: int = 8  # G, rollouts of one start (paper: N = 8)
    clip: float = 0.2  # eps (paper: 0.1)
    learning_rate: float = 4e-4  # the highest one; it falls to a tenth: the rollouts of an iteration are few and noisy
    head_learning_rate: float | None = field(default=None, metadata=ADDED)  # of the policy's heads; None: the same
    warmup: int = 4  # iterations over which the learning rate rises, because Adam's first steps are its most random
    epochs: int = 2  # passes over an iteration's chunks
    minibatch: int = 256  # chunks per step of the optimizer
    accumulate: int | None = None  # chunks per backward pass; gradients add up to a whole minibatch; None: all at once
    signal: float = 0.25  # a group of siblings whose advantages are all smaller is left out: they differ by chance
    guard: float = 0.0  # a rollout has the weight (1 - how unsure its outcome is) ** guard; 0: all have the same
    needs_hold: bool = field(default=False, metadata=ADDED)  # an episode in which nothing is ever held is a failure
    # A critic gives every chunk an advantage of its own (worldenv/rl/critic.py); `signal` then only counts groups.
    critic: bool = field(default=False, metadata=ADDED)
    gae_lambda: float = field(default=0.9, metadata=ADDED)  # with a critic; 1: what it expects later is unused
    # World model and reflector wait in host memory while the policy learns. auto: if the card is too small for all.
    offload: Literal["auto", "on", "off"] = field(default="auto", metadata=ADDED)
    # One step off policy: an iteration is imagined while the policy learns from the one before (docs/clusters.md).
    off_policy: bool = field(default=False, metadata=ADDED)
    max_skipped: int = 20  # updates with a non-finite loss or gradient before the run ends

    def __post_init__(self) -> None:
        check_fields(
            self,
            iterations=COUNT,
            starts=COUNT,
            siblings=Within(2, MOST),  # leave-one-out needs two
            clip=Within(0, 1, open_low=True, open_high=True),
            learning_rate=Within(0, 10),
            head_learning_rate=Within(0, 10, open_low=True),
            warmup=COUNT,  # 1: the full learning rate from the start
            epochs=COUNT,
            minibatch=COUNT,
            accumulate=COUNT,
            signal=SHARE,
            guard=Within(0, 100),
            gae_lambda=SHARE,
            max_skipped=Within(0, MOST),
        )
        if self.starts * self.siblings > MOST:
            raise FieldError(
                f"starts is {self.starts}, siblings {self.siblings}; the product should not exceed {MOST:,}"
            )
        if not self.learning_rate and self.head_learning_rate is None:
            raise FieldError("learning_rate is 0; only with a head_learning_rate can it be: then the heads alone learn")
        if self.off_policy and self.offload == "on":
            raise FieldError(
                "off_policy and offload are both on; world model and reflector are needed while the policy learns, so "
                "leave one of the two out"
            )
        if self.accumulate is not None and self.accumulate > self.minibatch:
            raise FieldError(f"accumulate is {self.accumulate}; it should not exceed minibatch, {self.minibatch}")

    def rate(self, iteration: int, highest: float | None = None) -> float:
        """The learning rate of an iteration (from 0): rises over `warmup`, falls to a tenth over all iterations.

        highest: None for `learning_rate`.
        """
        highest = self.learning_rate if highest is None else highest
        return highest * min(1.0, (iteration + 1) / self.warmup) * (1 - 0.9 * iteration / self.iterations)
