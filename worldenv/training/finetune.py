"""Stage 2: fine-tune the base policy on five demonstrations per task - the baseline that post-training starts from."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.policy.small import SmallPolicy
from worldenv.training.share import Share

Loss = Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]

SCALE_WEIGHT = 0.05  # of the scale head's likelihood against the action head's L1


def imitation_loss(policy: SmallPolicy, clips: Clips, batch: int, ranks: Ranks = ALONE) -> Loss:
    """L1 of the chunk's mean, and the Laplace negative log-likelihood of its scale (World-Env, arXiv 2509.24948)."""
    tokens, share = policy.encoder.text.tokenize(clips.instructions), Share(batch, ranks)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = torch.randint(len(clips), (batch,), generator=generator)
        step = (torch.rand(batch, generator=generator) * clips.length[episode]).long()
        episode, step = share.own(episode), share.own(step)
        action = clips.action_chunks(episode, step, policy.config.chunk)
        frames = clips.frames_at(episode, step[:, None])[:, 0, 0]
        mu, beta = policy(frames, clips.proprio[episode, step], tokens[episode])
        l1 = share.mean((mu - action).abs())
        nll = -share.mean(laplace_log_prob(action, mu.detach(), beta)) / mu[0].numel()
        return l1 + SCALE_WEIGHT * nll, {"l1": l1.item(), "nll": nll.item()}

    return loss


def with_pretraining(imitation: Loss, pretraining: Loss) -> Loss:
    """The sum of both, so that the policy does not forget what pretraining taught it."""

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        own, told = imitation(generator)
        again, more = pretraining(generator)
        return own + again, told | {f"pretraining_{name}": value for name, value in more.items()}

    return loss
