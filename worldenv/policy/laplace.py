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
    """

    chunk: int
    views: tuple[str, ...]

    def see(self, seen: Observation, read: Any) -> Tensor:
        raise NotImplementedError

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @torch.no_grad()
    def act(self, seen: Observation, read: Any, key: Key, explore: bool) -> Decision:
        """A draw from the distribution, or its mean."""
        feature = self.see(seen, read)
        action, log_prob = laplace_chunk(*self._in_float32(feature, seen.proprio), *key, explore)
        return Decision(action, log_prob, SeenFeature(feature, seen.proprio))

    def log_prob(self, record: SeenFeature, action: Tensor) -> Tensor:  # [B, K, A] -> [B]
        return laplace_log_prob(action, *self._in_float32(record.feature, record.proprio))

    def ppo_loss(
        self, record: SeenFeature, action: Tensor, log_prob: Tensor, advantage: Tensor, clip: float
    ) -> tuple[Tensor, Tensor]:
        """The clipped objective and the share of clipped ratios, by one op for loss and gradient."""
        return ppo_loss(*self._in_float32(record.feature, record.proprio), action, log_prob, advantage, clip)

    def _in_float32(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        mu, beta = self.heads(feature, proprio)
        return mu.float(), beta.float()
