"""Op `laplace_chunk`: draw a chunk of actions and say how probable it was, in one pass."""

from math import log

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.philox import Use, philox_reference

LARGEST = 0.5 - 1e-7  # of |u - 1/2|: a draw is finite


def laplace_log_prob(
    action: Tensor,  # [B, K, A]
    mu: Tensor,  # [B, K, A]
    beta: Tensor,  # [B, K, A]
) -> Tensor:  # [B]
    """Log-probability of a chunk, summed over its K * A numbers: -|a - mu| / exp(beta) - beta - log 2."""
    return -((action - mu).abs() * torch.exp(-beta) + beta + log(2)).sum((1, 2))


def laplace_chunk_reference(
    mu: Tensor,  # [B, K, A]
    beta: Tensor,  # [B, K, A]
    seed: int,
    episode: Tensor,  # [B]
    chunk: Tensor,  # [B]
    explore: bool,
) -> tuple[Tensor, Tensor]:  # [B, K, A], [B]
    """The meaning of `laplace_chunk`, in plain PyTorch."""
    if not explore:
        return mu.clone(), laplace_log_prob(mu, mu, beta)
    u = philox_reference(seed, episode, chunk, Use.ACTION, mu.shape[1:].numel(), False).view_as(mu) - 0.5
    action = mu - torch.exp(beta) * u.sign() * torch.log1p(-2 * u.abs().clamp(max=LARGEST))
    return action, laplace_log_prob(action, mu, beta)


def laplace_chunk(
    mu: Tensor,  # [B, K, A] float32, mean of each action
    beta: Tensor,  # [B, K, A] float32, logarithm of its scale
    seed: int,
    episode: Tensor,  # [B] int64, ids
    chunk: Tensor,  # [B] int64, in [0, 2^24)
    explore: bool = True,  # False: the mean
) -> tuple[Tensor, Tensor]:  # action [B, K, A] float32, not clipped to [-1, 1]; its log-probability [B] float32
    """A draw from Laplace(mu, exp(beta)) by inversion (World-Env, arXiv 2509.24948, action and scale heads):

        u        =  philox(seed, episode, chunk, Use.ACTION) - 1/2
        action   =  mu - exp(beta) sign(u) log(1 - 2 |u|)
        log_prob =  -sum(|action - mu| / exp(beta) + beta + log 2)

    No gradient: what is learned from is `ppo_loss`. Raises ValueError if a shape, dtype or device is another one.
    """
    if mu.ndim != 3:
        raise ValueError(f"mu has shape {list(mu.shape)}; it should be [B, K, A]")
    ops.check_tensors({"mu": (mu, mu.shape), "beta": (beta, mu.shape)})
    for name, tensor in {"episode": episode, "chunk": chunk}.items():
        if tensor.shape != mu.shape[:1] or tensor.dtype != torch.int64 or tensor.device != mu.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it should be torch.int64 "
                f"[{len(mu)}] on {mu.device}"
            )
    arguments = (mu.detach().contiguous(), beta.detach().contiguous(), seed, episode, chunk, explore)
    if ops.BACKEND == "reference":
        return laplace_chunk_reference(*arguments)
    return torch.ops.worldenv.laplace_chunk(*arguments)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::laplace_chunk", "CompositeExplicitAutograd")(laplace_chunk_reference)


@torch.library.register_fake("worldenv::laplace_chunk")
def _(mu, beta, seed, episode, chunk, explore):
    return torch.empty_like(mu), mu.new_empty(len(mu))
