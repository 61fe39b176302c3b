"""Stage 2: fine-tune the base policy on five demonstrations per task - the baseline that post-training starts from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.policy.network import Policy, laplace_log_prob

SCALE_WEIGHT = 0.05  # of the scale head's likelihood against the action head's L1


def imitation_loss(
    policy: Policy, sets: Sequence[Clips], batch: int
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """L1 of the chunk's mean, and the Laplace negative log-likelihood of its scale (METHOD.md, "Policy").

    Half of each batch comes from the first set, the other half from another one where there is any.
    """

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        other = sets[-1 - int(torch.randint(max(1, len(sets) - 1), (1,), generator=generator))]
        halves = [_draw(clips, batch // 2, policy.config.chunk, generator) for clips in (sets[0], other)]
        frames, proprio, tokens, action = (torch.cat(pair) for pair in zip(*halves, strict=True))
        mu, beta = policy(frames, proprio, tokens)
        l1 = (mu - action).abs().mean()
        nll = -laplace_log_prob(action, mu.detach(), beta).mean() / mu[0].numel()
        return l1 + SCALE_WEIGHT * nll, {"l1": l1.item(), "nll": nll.item()}

    return loss


def _draw(clips: Clips, count: int, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    episode = torch.randint(len(clips), (count,), generator=generator)
    step = (torch.rand(count, generator=generator) * clips.length[episode]).long()
    action = clips.action_chunks(episode, step, chunk)
    return clips.frames[episode, step], clips.proprio[episode, step], clips.tokens[episode], action
