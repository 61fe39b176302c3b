"""Op `ppo_loss`: the clipped objective of chunks of Laplace actions, with its gradient, in one pass."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.laplace_chunk import laplace_log_prob

FARTHEST = 20.0  # of a log-ratio: exp stays finite


def ppo_loss_reference(
    mu: Tensor,  # [B, K, A]
    beta: Tensor,  # [B, K, A]
    action: Tensor,  # [B, K, A]
    behaviour: Tensor,  # [B]
    advantage: Tensor,  # [B]
    clip: float,
) -> tuple[Tensor, Tensor]:  # loss, share of clipped ratios: []
    """The meaning of `ppo_loss`, in plain PyTorch; it has a gradient."""
    ratio = torch.exp((laplace_log_prob(action, mu, beta) - behaviour).clamp(-FARTHEST, FARTHEST))
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.min(ratio * advantage, clipped * advantage).mean()
    return loss, (ratio != clipped).float().mean().detach()


def ppo_loss(
    mu: Tensor,  # [B, K, A] float32, of the policy being trained
    beta: Tensor,  # [B, K, A] float32, logarithm of its scale
    action: Tensor,  # [B, K, A] float32, what was done
    behaviour: Tensor,  # [B] float32, its log-probability under the policy that acted
    advantage: Tensor,  # [B] float32
    clip: float,  # eps in (0, 1)
) -> tuple[Tensor, Tensor]:  # loss, share of clipped ratios: [] float32
    """PPO's loss over chunks (World-Env, arXiv 2509.24948, post-training):

        r    =  exp(log p(action | mu, beta) - behaviour)
        loss = -mean(min(r A, clip(r, 1 - eps, 1 + eps) A))

    Has a gradient to mu and beta, which is found with the loss; where |a - mu| = 0 that of mu is 0.

    Raises ValueError if a shape, dtype, device or `clip` is another one, or there is no chunk.
    """
    if mu.ndim != 3 or not len(mu) or not 0 < clip < 1:
        raise ValueError(
            f"mu has shape {list(mu.shape)} and clip is {clip}; they should be [B >= 1, K, A] and in (0, 1)"
        )
    b = len(mu)
    ops.check_tensors(
        {
            "mu": (mu, mu.shape),
            "beta": (beta, mu.shape),
            "action": (action, mu.shape),
            "behaviour": (behaviour, (b,)),
            "advantage": (advantage, (b,)),
        }
    )
    arguments = (mu, beta, action.detach(), behaviour.detach(), advantage.detach(), clip)
    if ops.BACKEND == "reference":
        return ppo_loss_reference(*arguments)
    return torch.ops.worldenv.ppo_loss(*arguments)[:2]


def ppo_loss_with_gradient_reference(
    mu: Tensor, beta: Tensor, action: Tensor, behaviour: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, share, and the gradients of the loss for mu and beta, in plain PyTorch."""
    distance, inverse = mu - action, torch.exp(-beta)
    log_ratio = laplace_log_prob(action, mu, beta) - behaviour
    loss, share = ppo_loss_reference(mu, beta, action, behaviour, advantage, clip)
    ratio = torch.exp(log_ratio.clamp(-FARTHEST, FARTHEST))
    passes = (ratio * advantage <= ratio.clamp(1 - clip, 1 + clip) * advantage) & (log_ratio.abs() <= FARTHEST)
    slope = torch.where(passes, -ratio * advantage / len(mu), 0.0)[:, None, None]
    return loss, share, slope * -distance.sign() * inverse, slope * (distance.abs() * inverse - 1)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::ppo_loss", "CompositeExplicitAutograd")(ppo_loss_with_gradient_reference)


@torch.library.register_fake("worldenv::ppo_loss")
def _(mu, beta, action, behaviour, advantage, clip):
    return mu.new_empty(()), mu.new_empty(()), torch.empty_like(mu), torch.empty_like(mu)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad_loss, *_):
    of_mu, of_beta = ctx.saved_tensors
    return grad_loss * of_mu, grad_loss * of_beta, None, None, None, None


torch.library.register_autograd("worldenv::ppo_loss", _backward, setup_context=_save)
