"""Teach the fine-tuned policy to read imagined frames without unlearning anything: it is its own teacher."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.policy.small import SmallPolicy
from worldenv.training.share import Share

SCALE_WEIGHT = 0.1  # of the distance of the log-scales against that of the means


def adaptation_loss(
    policy: SmallPolicy,
    true: Clips,
    imagined: Clips,  # the same episodes, replayed by the world model
    batch: int,
    ranks: Ranks = ALONE,
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """On an imagined frame the policy is to act as it acted, before this stage, on the true frame of the same moment.

    Half of each batch are the true frames themselves, so that nothing changes there. Needs no expert: every recorded
    episode serves. Distance: L1 of the means, and of the log-scales.
    """
    teacher = copy.deepcopy(policy).requires_grad_(False)
    share = Share(batch // 2, ranks)
    tokens_of = policy.encoder.text.tokenize(true.instructions)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = torch.randint(len(true), (batch // 2,), generator=generator)
        step = (torch.rand(batch // 2, generator=generator) * true.length[episode]).long()
        episode, step = share.own(episode), share.own(step)
        proprio, tokens = true.proprio[episode, step], tokens_of[episode]
        shown, painted = (clips.frames_at(episode, step[:, None])[:, 0, 0] for clips in (true, imagined))
        mu, beta = teacher(shown, proprio, tokens)
        new_mu, new_beta = policy(torch.cat([shown, painted]), proprio.repeat(2, 1), torch.cat([tokens, tokens]))
        apart = (new_mu.unflatten(0, (2, -1)) - mu).abs().mean((1, 2, 3)) * share.weight
        scale = share.mean((new_beta.unflatten(0, (2, -1)) - beta).abs())
        return apart.mean() + SCALE_WEIGHT * scale, {"l1_true": apart[0].item(), "l1_imagined": apart[1].item()}

    return loss
