"""The update of a policy by the clipped objective of PPO, through `log_prob` and `trainable`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.slots import Slots
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.episodes import Rollouts

FARTHEST = 20.0  # greatest |log-ratio|, so that exp stays finite
# record [B, ...], action [B, K, A], log_prob [B], advantage [B], clip: loss and share of clipped ratios, both []
Objective = Callable[[Slots, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def clipped_objective(
    policy: Policy,
    record: Slots,  # tensors [B, ...]
    action: Tensor,  # [B, K, A] float32
    log_prob: Tensor,  # [B] float32, under the policy that acted
    advantage: Tensor,  # [B] float32
    clip: float,
) -> tuple[Tensor, Tensor]:  # loss, share of clipped ratios: []
    """The loss of PPO through the policy's own `log_prob`: -mean(min(r A, clip(r, 1 - eps, 1 + eps) A))."""
    ratio = torch.exp((policy.log_prob(record, action) - log_prob).clamp(-FARTHEST, FARTHEST))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.min(ratio * advantage, clipped * advantage).mean()
    return loss, (ratio != clipped).float().mean().detach()


class Learner:
    """The policy, its optimizer, and the counts that a run reports."""

    def __init__(self, policy: Policy, config: PostTrainConfig):
        self.policy, self.config = policy, config
        self.parameters = policy.trainable()
        if not self.parameters:
            raise UserError("the policy has no trainable parameters: its `trainable` returned none")
        if any(parameter.is_inference() for parameter in self.parameters):
            raise UserError("the policy was made in torch.inference_mode and cannot be trained; make it outside of it")
        self.objective: Objective = getattr(policy, "ppo_loss", None) or partial(clipped_objective, policy)
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate)
        self.skipped = 0

    def update(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        """`epochs` passes over every chunk whose episode has an advantage, in shuffled minibatches.

        It computes in the policy's own precision, with gradients, whatever autocast or grad mode the caller is in.
        """
        autocast = torch.autocast("cuda" if advantage.is_cuda else "cpu", enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            return self._passes(rollouts, advantage, generator)

    def _passes(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        horizon, device = rollouts.log_prob.shape[1], advantage.device
        used = (torch.arange(horizon, device=device) < rollouts.chunks[:, None]) & (advantage != 0)[:, None]
        episode, chunk = used.nonzero(as_tuple=True)
        if not len(episode):
            return {"loss": 0.0, "clip_fraction": 0.0, "chunks": 0}
        losses, clipped = [], []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(episode), generator=generator, device=generator.device).to(device)
            for part in order.split(self.config.minibatch):
                loss, share = self._step(rollouts, advantage, episode[part], chunk[part])
                losses.append(loss)
                clipped.append(share)
        count = len(losses)
        return {"loss": sum(losses) / count, "clip_fraction": sum(clipped) / count, "chunks": len(episode)}

    def _step(self, rollouts: Rollouts, advantage: Tensor, episode: Tensor, chunk: Tensor) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, share = advantage.new_zeros(2).unbind()
        at_once = self.config.accumulate or len(episode)
        for e, c in zip(episode.split(at_once), chunk.split(at_once), strict=True):
            place = (e, c)
            record = rollouts.record.each(lambda tensor, place=place: tensor[place])
            given = record, rollouts.action[place], rollouts.log_prob[place], advantage[e]
            part, clipped = self.objective(*given, self.config.clip)
            weight = len(e) / len(episode)  # every chunk has the same weight, whichever part it is in
            (weight * part).backward()
            loss, share = loss + weight * part.detach(), share + weight * clipped
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
            return loss.item(), share.item()
        self.skipped += 1
        if self.skipped > self.config.max_skipped:
            raise UserError(
                f"{self.skipped} policy updates had a non-finite loss or gradient; lower --rl.learning-rate"
            )
        return 0.0, 0.0
