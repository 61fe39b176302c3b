"""Op `denoise_step`: from one noise level to the next, with noise of its own."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.philox import USES, philox_reference


def denoise_step_reference(
    noisy: Tensor,  # [B, ...]
    velocity: Tensor,  # [B, ...]
    t: float,
    t_next: float,
    seed: int,
    episode: Tensor,  # [B]
    chunk: Tensor,  # [B]
    use: int,
) -> Tensor:  # [B, ...]
    """The meaning of `denoise_step`, in plain PyTorch."""
    clean = noisy.float() - t * velocity.float()
    if t_next == 0:
        return clean.to(noisy.dtype)
    noise = philox_reference(seed, episode, chunk, use, noisy.shape[1:].numel(), True).view_as(noisy)
    return ((1 - t_next) * clean + t_next * noise).to(noisy.dtype)


def denoise_step(
    noisy: Tensor,  # [B, ...] float32, bfloat16 or float16: (1 - t) clean + t noise
    velocity: Tensor,  # [B, ...] likewise: the network's prediction of noise - clean
    t: float,  # in (0, 1]
    t_next: float,  # in [0, t)
    seed: int,
    episode: Tensor,  # [B] int64, ids
    chunk: Tensor,  # [B] int64, in [0, 2^24)
    use: int,  # what the noise is for, in [0, 256)
) -> Tensor:  # [B, ...], dtype of noisy
    """One step of the few-step sampler (Song et al. 2023, "multistep consistency sampling", on a flow):

        clean = noisy - t * velocity
        out   = (1 - t_next) * clean + t_next * noise

    The noise is that of `philox(..., normal=True)`, never stored; at t_next = 0 there is none. Computed in float32,
    rounded once; reads two tensors and writes one. No gradient.

    Raises ValueError if a shape, dtype, device or number is another one.
    """
    if not noisy.ndim or not 0 <= t_next < t <= 1 or not 0 <= use < USES:
        raise ValueError(
            f"t is {t}, t_next {t_next}, use {use} and noisy {list(noisy.shape)}; it should be 0 <= t_next < t <= 1, "
            f"use in [0, {USES}) and noisy [B, ...]"
        )
    ops.check_tensors({"noisy": (noisy, noisy.shape), "velocity": (velocity, noisy.shape)}, ops.FLOATS)
    for name, tensor in {"episode": episode, "chunk": chunk}.items():
        if tensor.shape != noisy.shape[:1] or tensor.dtype != torch.int64 or tensor.device != noisy.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it should be torch.int64 "
                f"[{len(noisy)}] on {noisy.device}"
            )
    arguments = (noisy.detach().contiguous(), velocity.detach().contiguous(), t, t_next, seed, episode, chunk, use)
    if ops.BACKEND == "reference":
        return denoise_step_reference(*arguments)
    return torch.ops.worldenv.denoise_step(*arguments)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::denoise_step", "CompositeExplicitAutograd")(denoise_step_reference)


@torch.library.register_fake("worldenv::denoise_step")
def _(noisy, velocity, t, t_next, seed, episode, chunk, use):
    return torch.empty_like(noisy)
