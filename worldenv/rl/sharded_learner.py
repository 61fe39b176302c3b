"""The update of a policy that is too large to be learnt whole on every rank."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from worldenv.interfaces.policy import Policy
from worldenv.launch.ranks import Ranks
from worldenv.launch.shards import clip_gradients, is_shard, laid_out, sharded_copy, whole
from worldenv.rl.checks import trainable
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rollout.aside import in_host_memory
from worldenv.rollout.episodes import Rollouts


class ShardedLearner(Learner):
    """A learner whose `policy` is a copy with its layers in shards; the one that acts takes over what the copy learnt.

    Raises UserError as `Learner` does, and if the policy cannot be sharded.
    """

    sharded = True

    def __init__(self, policy: Policy, config: PostTrainConfig, ranks: Ranks):
        trainable(policy)  # before it is copied
        super().__init__(sharded_copy(policy, ranks), config, ranks)
        self.whole = [parameter for parameter in self.parameters if not is_shard(parameter)]
        self.acts = policy

    def update(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        with self._other_aside():
            figures = super().update(rollouts, advantage, generator)
        self._hand_over()
        return figures

    def take_up(self, weights: dict[str, Tensor], optimizer: dict[str, Any], skipped: int) -> None:
        """The tensors may be whole, or laid out as this learner's."""
        now, flat = self.policy.state_dict(), [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            i: {name: laid_out(t, flat[i]) if t.shape == flat[i].shape else t for name, t in own.items()}
            for i, own in optimizer["state"].items()
        }
        weights = {name: laid_out(tensor, now[name]) for name, tensor in weights.items()}
        super().take_up(weights, optimizer | {"state": moments}, skipped)
        self._hand_over()

    def _parts(self, episode: Tensor, chunk: Tensor, block: Tensor, count: int) -> list[tuple[Tensor, Tensor, float]]:
        """As in `Learner`, but all ranks have the same number of parts, because they gather a layer together.

        Ranks with fewer parts add parts of weight 0. There are no blocks: FSDP adds gradients in float32, so with
        blocks the sums would still depend on the number of ranks.
        """
        parts, first = super()._parts(episode, chunk, torch.zeros_like(block), count), episode.new_zeros(1)
        return parts + [(first, first, 0.0)] * (max(self.ranks.every(len(parts))) - len(parts))

    def _agreed(self, sums: list[Tensor | None], loss: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        figures = self.ranks.add_gradients(self.whole, loss, share, sums=sums)
        return *figures, clip_gradients(self.parameters, 1.0, self.ranks)

    def _other_aside(self) -> AbstractContextManager:
        """Where all that is idle waits in host memory, so does the policy that acts."""
        if self.config.offload != "on":
            return nullcontext()
        return in_host_memory([self.acts], self.policy, self.parameters[0].device)

    def _hand_over(self) -> None:
        with torch.no_grad():
            for acts, learnt in zip(trainable(self.acts), self.parameters, strict=True):
                acts.copy_(whole(learnt))
