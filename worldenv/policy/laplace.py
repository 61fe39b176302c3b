"""Policies that are a Laplace distribution over chunks of actions, with the ops that draw from it and train it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.slots import Slots
from worldenv.ops.laplace_chunk import laplace_chunk, laplace_log_prob
from worldenv.ops.ppo_loss import ppo_loss


@dataclass
class SeenFeature(Slots):
    """What the heads need of B moments: no frame is recorded."""

    feature: Tensor  # [B, D] float32
    proprio: Tensor  # [B, P] float32


class LaplacePolicy(nn.Module):
    """A policy that gives mean and log-scale of a Laplace distribution over each number of a chunk.

    A subclass defines `chunk`, `views`, `read`, `trainable` and two methods: `see(seen, read) -> feature [B, D]`, the
    frozen part, and `heads(feature, proprio) -> mu, beta` [B, K, A], the part that is trained. The features are
    recorded, so an update computes the heads only.

    Where the part that reads frames is trained, too, it defines `moment(seen, read, key) -> record`
    and `distribution(record) -> mu, beta` in place of these two.
    """

    chunk: int
    views: tuple[str, ...]

    def see(self, seen: Observation, read: Any) -> Tensor:
        raise NotImplementedError

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def moment(self, seen: Observation, read: Any, key: Key | None = None) -> Slots:
        """What is recorded of B moments."""
        return SeenFeature(self.see(seen, read), seen.proprio)

    def distribution(self, record: Slots) -> tuple[Tensor, Tensor]:
        """mu and beta [B, K, A] float32, under the present weights."""
        mu, beta = self.heads(record.feature, record.proprio)
        return mu.float(), beta.float()

    @torch.no_grad()
    def act(self, seen: Observation, read: Any, key: Key, explore: bool) -> Decision:
        """A draw from the distribution, or its mean."""
        record = self.moment(seen, read, key)
        action, log_prob = laplace_chunk(*self.distribution(record), *key, explore)
        return Decision(action, log_prob, record)

    def log_prob(self, record: Slots, action: Tensor) -> Tensor:  # [B, K, A] -> [B]
        return laplace_log_prob(action, *self.distribution(record))

    def ppo_loss(
        self, record: Slots, action: Tensor, log_prob: Tensor, advantage: Tensor, clip: float
    ) -> tuple[Tensor, Tensor]:
        """The clipped objective and the share of clipped ratios, by one op for loss and gradient."""
        return ppo_loss(*self.distribution(record), action, log_prob, advantage, clip)
