"""Stage 1: the vision-language-action base, on the disjoint suite - the role of large robot data for a released VLA."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.instruction import tokenize
from worldenv.policy.network import Policy, PolicyConfig, laplace_log_prob
from worldenv.training.demonstrate import Disturbed, disturb
from worldenv.tasks.scenes import pretraining_task


@dataclass(frozen=True)
class PretrainConfig:
    episodes: int = 4000
    steps: int = 8000
    batch: int = 64
    learning_rate: float = 1.5e-3


class Base(nn.Module):
    """A policy whose encoder is also asked where things are and whether the task is done.

    `done` answers the yes/no question without any training on the target tasks: the zero-shot judge.
    """

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.policy = Policy(config)
        self.point = nn.Linear(config.width, 6)
        self.done = nn.Sequential(nn.ReLU(), nn.Linear(config.width, 64), nn.ReLU(), nn.Linear(64, 1))


def base_loss(base: Base, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Action L1 + Laplace NLL of the scale + pointing L1 + BCE of "is it done?"; actions count until shortly after success."""
    policy = base.policy
    feature = policy.encoder(batch["frames"], batch["tokens"])
    mu, beta = policy.heads(feature, batch["proprio"])
    use = batch["use_action"]
    l1 = ((mu - batch["action"]).abs().mean((1, 2)) * use).sum() / use.sum().clamp(min=1)
    nll = -(laplace_log_prob(batch["action"], mu.detach(), beta) * use).sum() / use.sum().clamp(min=1) / mu[0].numel()
    point = (base.point(feature) * 0.1 - batch["place"]).abs().mean()
    done = F.binary_cross_entropy_with_logits(base.done(feature)[:, 0], batch["done"])
    loss = l1 + 0.05 * nll + 5.0 * point + 0.2 * done
    return loss, {"l1": l1.item(), "nll": nll.item(), "point_cm": 100 * point.item(), "done_bce": done.item()}


def sample_base_batch(data: Disturbed, tokens: Tensor, generator: torch.Generator, size: int, chunk: int) -> dict[str, Tensor]:
    """Random frames of random episodes, with the K expert actions that follow."""
    n, steps = data.actions.shape[:2]
    episode = torch.randint(n, (size,), generator=generator)
    step = torch.randint(steps - chunk + 1, (size,), generator=generator)
    e, s = episode.numpy(), step.numpy()
    done = torch.from_numpy(data.success[e, s])
    earlier = torch.from_numpy(data.success[e, (s - 3).clip(0)])
    return {
        "frames": torch.from_numpy(data.frames[e, s]),
        "proprio": torch.from_numpy(data.proprio[e, s]),
        "action": torch.from_numpy(data.actions[e[:, None], s[:, None] + torch.arange(chunk).numpy()]),
        "place": torch.from_numpy(data.place[e, s]),
        "done": done.float(),
        "use_action": (~(done & earlier)).float(),
        "tokens": tokens[episode],
    }


def disturbed_episodes(count: int, seed: int) -> Disturbed:
    """`count` episodes of the pretraining suite, a task of its own for each."""
    return disturb([pretraining_task(seed * 1_000_000 + i) for i in range(count)], seed)
