"""Triton face of `denoise_step`: the noise is made where it is used and never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face
from worldenv.kernels.philox import in_order, philox_normal

BLOCK = 256  # counters of a program, four numbers each


@triton.jit(do_not_specialize=["seed"])
def _denoise_step(
    p_noisy,
    p_velocity,
    p_episode,
    p_chunk,
    p_out,
    t,
    keep,
    t_next,
    seed: tl.int64,
    use,
    count,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(count, 4 * BLOCK)
    i_b, i_n = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_n = i_n * 4 * BLOCK + tl.arange(0, 4 * BLOCK)
    o_x, m_n = i_b * count + o_n, o_n < count
    b_out = tl.load(p_noisy + o_x, mask=m_n, other=0.0).to(tl.float32)
    b_out -= t * tl.load(p_velocity + o_x, mask=m_n, other=0.0).to(tl.float32)
    if NOISE:
        b_episode, b_chunk = tl.load(p_episode + i_b), tl.load(p_chunk + i_b)
        b0, b1, b2, b3 = philox_normal(seed, b_episode, b_chunk, use, i_n * BLOCK + tl.arange(0, BLOCK))
        b_out = keep * b_out + t_next * in_order(b0, b1, b2, b3)
    tl.store(p_out + o_x, b_out.to(p_out.dtype.element_ty), mask=m_n)


@face
def denoise_step(
    noisy: Tensor,  # [B, ...] float32, bfloat16 or float16
    velocity: Tensor,  # [B, ...] likewise
    t: float,
    t_next: float,
    seed: int,
    episode: Tensor,  # [B] int64
    chunk: Tensor,  # [B] int64
    use: int,
) -> Tensor:  # [B, ...], dtype of noisy
    """A program per episode and 1,024 numbers."""
    noisy = noisy.contiguous()
    out = torch.empty_like(noisy)
    if out.numel():
        count = out.numel() // len(out)
        _denoise_step[(len(out) * triton.cdiv(count, 4 * BLOCK),)](
            noisy,
            velocity.contiguous(),
            episode.contiguous(),
            chunk.contiguous(),
            out,
            t,
            1 - t_next,
            t_next,
            seed,
            use,
            count,
            NOISE=t_next != 0,
            BLOCK=BLOCK,
        )
    return out
