"""The update of a policy by the clipped objective of PPO, through `log_prob` and `trainable`."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.slots import Slots
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.rl.checks import check_rollouts, check_update, heads_apart, trainable
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.checks import check_config
from worldenv.rollout.episodes import Rollouts

FARTHEST = 20.0  # greatest |log-ratio|, so that exp stays finite
BLOCKS = 8  # into which the groups of an iteration are divided; each of 1, 2, 4 or 8 ranks has whole blocks
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
    """The loss of PPO through the policy's own `log_prob`: -mean(min(r A, clip(r, 1 - eps, 1 + eps) A)).

    Raises UserError if `log_prob` does not return a number for each chunk.
    """
    now = policy.log_prob(record, action)
    if not isinstance(now, Tensor) or now.shape != log_prob.shape:
        found = list(now.shape) if isinstance(now, Tensor) else f"a {type(now).__name__}"
        raise UserError(
            f"the policy's `log_prob` returned {found}; it should be {list(log_prob.shape)}: a number for each chunk"
        )
    ratio = torch.exp((now - log_prob).clamp(-FARTHEST, FARTHEST))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.min(ratio * advantage, clipped * advantage).mean()
    return loss, (ratio != clipped).float().mean().detach()


class Learner:
    """The policy, its optimizer, and the counts that a run reports.

    Several ranks, each with rollouts of its own, learn as one process would from all of them: every minibatch is drawn
    from the chunks of all ranks, and the gradients are added up. The groups of an iteration (a group is all siblings of
    one start) are divided into BLOCKS. The gradient of each block is computed by itself, and gradients are added in
    float64. So 1, 2, 4 and 8 ranks with equal numbers of threads learn the same, nearly always to the last bit.

    Raises UserError if `policy.trainable()` does not return parameters of the policy that can be trained.
    """

    sharded = False  # whether each rank holds a part of the policy only: sharded_learner.py

    def __init__(self, policy: Policy, config: PostTrainConfig, ranks: Ranks = ALONE):
        check_config(config, PostTrainConfig)
        self.policy, self.config, self.ranks = policy, config, ranks
        self.parameters = trainable(policy)
        self.whole = self.parameters  # the parameters that are not in shards
        self.begun = False  # whether a step has been made
        self.objective: Objective = getattr(policy, "ppo_loss", None) or partial(clipped_objective, policy)
        groups = heads_apart(policy, self.parameters, config)
        self.highest = [rate for rate, _ in groups]  # learning rate of each group
        self.optimizer = torch.optim.Adam([{"params": group, "lr": rate} for rate, group in groups])
        self.skipped = 0

    def set_rates(self, iteration: int) -> None:
        """Take the learning rates of an iteration (from 0)."""
        for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = self.config.rate(iteration, highest)

    def update(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        """`epochs` passes over every chunk that has an advantage, in shuffled minibatches.

        `advantage` is float32, [E] for all chunks of an episode, or [E, T] for each chunk.
        All ranks need a generator in the same state; the figures are those of all.
        It computes in the policy's own precision, with gradients, whatever autocast or grad mode the caller is in.
        Raises UserError for arguments that do not fit each other, and if the policy does not do what its interface
        says.
        """
        check_rollouts(rollouts)
        check_update(rollouts, advantage, generator)
        autocast = torch.autocast("cuda" if advantage.is_cuda else "cpu", enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), autocast:
            whole = advantage.detach() if advantage.ndim == 2 else advantage.detach()[:, None]
            return self._passes(rollouts, whole.expand_as(rollouts.log_prob), generator)

    def take_up(self, weights: dict[str, Tensor], optimizer: dict[str, Any], skipped: int) -> None:
        """Go on from the state dicts of policy and optimizer, and the number of steps that were skipped."""
        self.policy.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        self.skipped = skipped

    def _passes(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        horizon, device = rollouts.log_prob.shape[1], advantage.device
        first = self.ranks.before(len(advantage))  # this rank's first episode among those of all
        chunks, weights = self.ranks.gather(rollouts.chunks, advantage)
        used = (torch.arange(horizon, device=device) < chunks[:, None]) & (weights != 0)
        episode, chunk = used.nonzero(as_tuple=True)
        groups = -(-len(chunks) // self.config.siblings)
        ends = torch.tensor([groups * i // BLOCKS for i in range(1, BLOCKS)], device=device)
        block = torch.bucketize(episode // self.config.siblings, ends, right=True)
        episode = episode - first
        own = (episode >= 0) & (episode < len(advantage))
        if not len(episode):
            return {"loss": 0.0, "clip_fraction": 0.0, "chunks": 0}
        losses, clipped = [], []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(episode), generator=generator, device=generator.device).to(device)
            for part in order.split(self.config.minibatch):
                mine = part[own[part]]
                loss, share = self._step(rollouts, advantage, (episode[mine], chunk[mine], block[mine]), len(part))
                losses.append(loss)
                clipped.append(share)
        count = len(losses)
        return {"loss": sum(losses) / count, "clip_fraction": sum(clipped) / count, "chunks": len(episode)}

    def _step(
        self,
        rollouts: Rollouts,
        advantage: Tensor,  # [E, T]
        mine: tuple[Tensor, Tensor, Tensor],  # episode, chunk and block, [M] int64: this rank's part of a minibatch
        count: int,  # chunks of the whole minibatch
    ) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        sums: list[Tensor | None] = [None] * len(self.whole)
        loss, share = advantage.new_zeros(2, dtype=torch.float64).unbind()
        for e, c, weight in self._parts(*mine, count):
            place = (e, c)
            record = rollouts.record.each(lambda tensor, place=place: tensor[place])
            given = record, rollouts.action[place], rollouts.log_prob[place], advantage[place]
            part, clipped = _checked(self.objective(*given, self.config.clip))
            (weight * part).backward()
            self._move_gradients(sums)
            loss, share = loss + weight * part.detach(), share + weight * clipped
        loss, share, norm = self._agreed(sums, loss, share)
        if torch.isfinite(loss) and torch.isfinite(norm):
            if not self.begun:
                self._begin(share.item())
            self.optimizer.step()
            return loss.item(), share.item()
        self.skipped += 1
        if self.skipped > self.config.max_skipped:
            raise UserError(
                f"{self.skipped} policy updates had a non-finite loss or gradient; lower --rl.learning-rate"
            )
        return 0.0, 0.0

    def _parts(self, episode: Tensor, chunk: Tensor, block: Tensor, count: int) -> list[tuple[Tensor, Tensor, float]]:
        """The parts of a minibatch that go through the network one by one, each within a block, with their weights.

        A part's weight is its number of chunks / `count`, so every chunk has the same weight.
        """
        at_once = self.config.accumulate or count
        inside = [block == number for number in block.unique()]
        split = [zip(episode[own].split(at_once), chunk[own].split(at_once), strict=True) for own in inside]
        return [(e, c, len(e) / count) for one in split for e, c in one]  # none if all chunks are other ranks'

    def _move_gradients(self, sums: list[Tensor | None]) -> None:
        """Add the gradients of one part to the sums in float64, and clear the gradients."""
        for i, parameter in enumerate(self.whole):
            if parameter.grad is not None:
                sums[i] = parameter.grad.double() if sums[i] is None else sums[i].add_(parameter.grad)
                parameter.grad = None

    def _agreed(self, sums: list[Tensor | None], loss: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and clipped share of all ranks, and the norm of the gradients of all, which are clipped to 1."""
        figures = self.ranks.add_gradients(self.parameters, loss, share, sums=sums)
        return *figures, nn.utils.clip_grad_norm_(self.parameters, 1.0)

    def _begin(self, clipped: float) -> None:
        """Warn if the ratios of the very first step, before any weight has changed, are not 1."""
        self.begun = True
        if clipped > 0.5:
            warnings.warn(
                f"before the first update {100 * clipped:.0f} % of the ratios are clipped, where all should be 1: the "
                "policy's `log_prob` gives other numbers than its `act` did, or its weights changed since then",
                stacklevel=5,
            )


def _checked(result: object) -> tuple[Tensor, Tensor]:
    """Raise UserError unless an objective is a loss with a gradient and a share, both []."""
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    if not is_pair or not all(isinstance(part, Tensor) and not part.ndim for part in result):
        raise UserError(
            "the policy's `ppo_loss` should return two tensors []: the loss and the share of clipped ratios"
        )
    if not result[0].requires_grad:
        raise UserError(
            "the loss of the policy has no gradient: its `log_prob` should compute with the parameters that "
            "`trainable` returns, and not under torch.no_grad"
        )
    return result[0], result[1]
