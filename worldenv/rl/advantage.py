"""Leave-one-out advantage of rollouts that begin at the same start (World-Env, arXiv 2509.24948, post-training)."""

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.rl.checks import check_groups
from worldenv.rollout.episodes import Rollouts


def leave_one_out(
    reward: Tensor,  # [N, G] float32
    finite: Tensor,  # [N, G] bool; the others do not count
) -> Tensor:  # [N, G] float32
    """A_n = R_n - mean reward of the other finite siblings; 0 if the rollout or all the others are not finite.

    Raises UserError for tensors of another kind.
    """
    alike = isinstance(reward, Tensor) and isinstance(finite, Tensor) and reward.shape == finite.shape
    if not alike or reward.ndim != 2 or not reward.is_floating_point() or finite.dtype != torch.bool:
        raise UserError("reward and finite should be tensors [N, G], torch.float32 and torch.bool")
    others = finite.sum(1, keepdim=True) - 1
    total = torch.where(finite, reward, 0.0).sum(1, keepdim=True)
    return torch.where(finite & (others > 0), reward - (total - reward) / others.clamp(min=1), 0.0)


def group_advantage(
    rollouts: Rollouts, siblings: int, signal: float, guard: float = 0.0
) -> tuple[Tensor, int]:  # [E], groups without signal
    """The advantage of every episode. A group whose advantages are all smaller than `signal` gets 0.

    The more unsure its outcome, the less a rollout weighs: its advantage is multiplied by (1 - unsure) ** guard.

    Raises UserError unless `siblings` divides the number of rollouts, for a signal outside [0, 1] and a negative guard.
    """
    check_groups(rollouts, siblings, signal, guard)
    finite = ~rollouts.broken.view(-1, siblings)
    reward = torch.where(finite, rollouts.final_reward().view(-1, siblings), 0.0)
    advantage = leave_one_out(reward, finite)
    flat = advantage.abs().amax(1) < signal
    advantage = torch.where(flat[:, None], 0.0, advantage).flatten()
    if guard:
        advantage = advantage * (1 - rollouts.unsure()) ** guard
    return advantage, int(flat.sum())
