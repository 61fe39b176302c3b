"""Stage 1: the vision-language-action base, on the disjoint suite - the role of large robot data for a released VLA."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.data.disturbed import Disturbed, Stills
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.suites.tabletop.demonstrate import disturb
from worldenv.suites.tabletop.scenes import pretraining_task
from worldenv.training.share import WHOLE, Share

ACTION_SHARE = 0.25  # of the rows that show episodes: so many come from episodes whose actions may be seen
STILL_SHARE = 0.5  # of the rows of a batch, if there are stills
PLAN_SHARE = 0.5  # of the stills that have a plan: so many are asked about its thing, the others about a random thing


class Base(nn.Module):
    """A policy whose encoder is also asked where things are and whether the task is done.

    `done` answers the yes/no question without any training on the target tasks: the zero-shot judge.
    """

    def __init__(self, config: SmallPolicyConfig):
        super().__init__()
        self.policy = SmallPolicy(config)
        self.point = nn.Linear(config.width, 6)
        self.done = nn.Sequential(nn.ReLU(), nn.Linear(config.width, 64), nn.ReLU(), nn.Linear(64, 1))


def base_loss(base: Base, batch: dict[str, Tensor], share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
    """Action L1 + Laplace NLL of the scale + pointing L1 + BCE of "is it done?"; late actions are left out."""
    policy = base.policy
    feature = policy.encoder(batch["frames"], batch["tokens"])
    mu, beta = policy.heads(feature, batch["proprio"])
    use = batch["use_action"]
    l1 = share.mean((mu - batch["action"]).abs().mean((1, 2)), use)
    nll = -share.mean(laplace_log_prob(batch["action"], mu.detach(), beta), use) / mu[0].numel()
    point = share.mean((base.point(feature) * 0.1 - batch["place"]).abs())
    done = share.mean(F.binary_cross_entropy_with_logits(base.done(feature)[:, 0], batch["done"]))
    loss = l1 + 0.05 * nll + 5.0 * point + 0.2 * done
    return loss, {"l1": l1.item(), "nll": nll.item(), "point_cm": 100 * point.item(), "done_bce": done.item()}


def pretraining_loss(
    base: Base, data: Disturbed, action_episodes: int, size: int, ranks: Ranks = ALONE
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """`base_loss` of random batches; only the first `action_episodes` have actions."""
    asked = data.instructions + (data.stills.instructions if data.stills else ())
    tokens, share = base.policy.encoder.text.tokenize(asked), Share(size, ranks)
    with_actions = min(action_episodes, len(data.plans))  # an expert may have failed some

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return base_loss(base, sample_base_batch(data, tokens, generator, size, with_actions, share.rows), share)

    return loss


def sample_base_batch(
    data: Disturbed,
    tokens: Tensor,  # [N + D, L]: first the instructions of the N episodes, then the D instructions of the stills
    generator: torch.Generator,
    size: int,
    action_episodes: int,  # only the first so many have actions: pictures with answers are plenty, robot data is not
    rows: slice = slice(None),  # those of the batch that are asked for
) -> dict[str, Tensor]:
    """Random frames of random episodes, with the answers and, where there are any, the K expert actions that follow.

    If there are stills, about half of the rows are stills, each with the answer for a thing in it, and the plan for it
    if there is one.
    """
    n, steps = data.plans.shape[:2]
    episode = torch.randint(n, (size,), generator=generator)
    with_actions = torch.randint(action_episodes, (size,), generator=generator)
    episode = torch.where(torch.rand(size, generator=generator) < ACTION_SHARE, with_actions, episode)
    step = torch.randint(steps, (size,), generator=generator)
    episode, step = episode[rows], step[rows]
    e, s = episode.numpy(), step.numpy()
    done = torch.from_numpy(data.success[e, s])
    earlier = torch.from_numpy(data.success[e, (s - 3).clip(0)])
    batch = {
        "frames": torch.from_numpy(data.frames[e, s]),
        "proprio": torch.from_numpy(data.proprio[e, s]),
        "action": torch.from_numpy(data.plans[e, s]),
        "place": torch.from_numpy(data.place[e, s]),
        "done": done.float(),
        "use_action": (~(done & earlier) & (episode < action_episodes)).float(),
        "tokens": tokens[episode],
    }
    return batch if data.stills is None else _with_stills(batch, data.stills, tokens[n:], generator, size, rows)


def _with_stills(
    batch: dict[str, Tensor], stills: Stills, tokens: Tensor, generator: torch.Generator, size: int, rows: slice
) -> dict[str, Tensor]:
    """The batch with stills in random rows."""
    is_still = (torch.rand(size, generator=generator) < STILL_SHARE)[rows]
    picture = torch.randint(len(stills.frames), (size,), generator=generator)[rows]
    asked = torch.rand(size, len(tokens), generator=generator)[rows]
    m = picture.numpy()
    thing, planned = asked.where(torch.from_numpy(stills.shown[m]), -1.0).argmax(1), torch.from_numpy(stills.asked[m])
    is_planned = (torch.rand(size, generator=generator) < PLAN_SHARE)[rows] & (planned >= 0)
    thing = planned.where(is_planned, thing)
    d = thing.numpy()
    given = {
        "frames": torch.from_numpy(stills.frames[m]),
        "proprio": torch.from_numpy(stills.proprio[m]),
        "place": torch.from_numpy(stills.place[m, d]),
        "done": torch.from_numpy(stills.done[m, d]).float(),
        "action": torch.from_numpy(stills.plan[m]),
        "use_action": (thing == planned).float(),
        "tokens": tokens[thing],
    }
    return batch | {
        name: torch.where(is_still.view(-1, *[1] * (value.dim() - 1)), value, batch[name])
        for name, value in given.items()
    }


def disturbed_episodes(count: int, seed: int) -> Disturbed:
    """`count` episodes of the pretraining suite, a task of its own for each."""
    return disturb([pretraining_task(seed * 1_000_000 + i) for i in range(count)], seed)
