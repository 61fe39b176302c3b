"""Fit how far a released policy explores: the scale of its actions, to demonstrations; its means stay as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.observation import Key, Observation, shown_to, table_of
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.policy.laplace import LaplacePolicy
from worldenv.records.progress import Progress


def fit_scale(
    policy: LaplacePolicy, clips: Clips, steps: int = 200, batch: int = 16, learning_rate: float = 1e-3, seed: int = 0
) -> tuple[float, float]:
    """Fit the policy's `scale_head` by the Laplace negative log-likelihood of the shown actions (World-Env, arXiv
    2509.24948, scale head): |a - mu| / exp(beta) + beta + log 2.

    Returns its mean per number of an action over the first tenth of the steps, and over the last. Raises UserError for
    a policy without scale head, for clips without the policy's views, and if a loss is not finite.
    """
    if not isinstance(getattr(policy, "scale_head", None), nn.Module):
        raise UserError(f"{type(policy).__name__} has no scale_head that could be fitted")
    if missing := [view for view in policy.views if view not in clips.views]:
        raise UserError(f"the clips lack {', '.join(missing)}, which the policy looks at; they show {clips.views}")
    if not isinstance(steps, Integral) or not isinstance(batch, Integral) or min(steps, batch) < 1:
        raise UserError(f"steps is {shown(steps)} and batch {shown(batch)}; both should be positive whole numbers")
    texts, rows = table_of(clips.instructions)
    optimizer = torch.optim.Adam(policy.scale_head.parameters(), learning_rate)
    device, losses = next(policy.parameters()).device, []
    read, generator = policy.read(texts), torch.Generator().manual_seed(seed)
    with _alone(policy.scale_head, policy), Progress(steps, "fitting the scale") as progress:
        for step in range(steps):
            seen, action = _drawn(policy, clips, rows, batch, generator)
            key = Key(seed, torch.arange(batch, device=device), torch.full((batch,), step, device=device))
            record = policy.moment(seen.each(lambda tensor: tensor.to(device)), read, key)
            mu, beta = policy.distribution(record)
            loss = -laplace_log_prob(action.to(device), mu.detach(), beta).mean() / mu[0].numel()
            if not loss.isfinite():
                raise UserError("the likelihood of the shown actions is not finite; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            progress.advance(nll=losses[-1])
    optimizer.zero_grad(set_to_none=True)
    some = max(1, steps // 10)
    return sum(losses[:some]) / some, sum(losses[-some:]) / some


@contextmanager
def _alone(module: nn.Module, whole: nn.Module) -> Iterator[None]:
    """Inside, no other parameter of the whole has a gradient, so nothing is kept for one."""
    mine = {id(parameter) for parameter in module.parameters()}
    others = [p for p in whole.parameters() if p.requires_grad and id(p) not in mine]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _drawn(
    policy: LaplacePolicy, clips: Clips, rows: Tensor, batch: int, generator: torch.Generator
) -> tuple[Observation, Tensor]:  # of B moments; [B, K, A]
    episode = torch.randint(len(clips), (batch,), generator=generator)
    step = (torch.rand(batch, generator=generator) * clips.length[episode]).long()
    frames = clips.frames_at(episode, step[:, None])[:, 0]
    seen = Observation(frames, clips.proprio[episode, step], None, rows[episode])
    return shown_to(seen, clips.views, policy.views), clips.action_chunks(episode, step, policy.chunk)
