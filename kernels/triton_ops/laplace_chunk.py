"""Triton face of `laplace_chunk`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face
from worldenv.kernels.philox import in_order, philox_uniform

USE = tl.constexpr(0)  # Use.ACTION
LARGEST = tl.constexpr(0.5 - 1e-7)  # of |u - 1/2|: a draw is finite
LOG_2 = tl.constexpr(0.6931471805599453)
TILE = 256  # counters of a program, four numbers each
LARGEST_COUNT = 4096  # a chunk is held in registers


@triton.jit(do_not_specialize=["seed"])
def _laplace_chunk(
    p_mu,
    p_beta,
    p_episode,
    p_chunk,
    p_action,
    p_log_prob,
    seed: tl.int64,
    B,
    count,
    BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPLORE: tl.constexpr,
):
    o_b, o_n = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, 4 * BLOCK)
    m_b = o_b < B
    m_x = m_b[:, None] & (o_n < count)[None, :]
    o_x = o_b.to(tl.int64)[:, None] * count + o_n[None, :]
    b_mu = tl.load(p_mu + o_x, mask=m_x, other=0.0)
    b_beta = tl.load(p_beta + o_x, mask=m_x, other=0.0)
    b_action = b_mu
    if EXPLORE:
        b_episode = tl.load(p_episode + o_b, mask=m_b, other=0)[:, None]
        b_chunk = tl.load(p_chunk + o_b, mask=m_b, other=0)[:, None]
        o_counter = tl.zeros([BLOCK_B, 1], tl.int32) + tl.arange(0, BLOCK)[None, :]
        b0, b1, b2, b3 = philox_uniform(seed, b_episode, b_chunk, USE, o_counter)
        b_u = in_order(b0, b1, b2, b3) - 0.5
        # u is a multiple of 2^-24, so that 1 - 2 |u| is exact and log as good as log1p.
        b_away = tl.exp(b_beta) * tl.log(1.0 - 2.0 * tl.minimum(tl.abs(b_u), LARGEST))
        b_action = tl.where(b_u > 0, b_mu - b_away, b_mu + b_away)
    b_log_prob = -(tl.abs(b_action - b_mu) * tl.exp(-b_beta) + b_beta + LOG_2)
    tl.store(p_action + o_x, b_action, mask=m_x)
    tl.store(p_log_prob + o_b, tl.sum(tl.where(m_x, b_log_prob, 0.0), 1), mask=m_b)


@face
def laplace_chunk(
    mu: Tensor,  # [B, K, A] float32
    beta: Tensor,  # [B, K, A] float32
    seed: int,
    episode: Tensor,  # [B] int64
    chunk: Tensor,  # [B] int64
    explore: bool,
) -> tuple[Tensor, Tensor]:  # action [B, K, A], its log-probability [B]
    """A program per block of episodes. Raises ValueError if K A is over 4096."""
    mu, count = mu.contiguous(), mu.shape[1] * mu.shape[2]
    if count > LARGEST_COUNT:
        raise ValueError(f"mu has {count} numbers a chunk; this face (Triton) takes at most {LARGEST_COUNT}")
    action, log_prob = torch.empty_like(mu), mu.new_zeros(len(mu))
    if not action.numel():
        return action, log_prob
    block = triton.next_power_of_2(triton.cdiv(count, 4))
    block_b = max(1, TILE // block)
    _laplace_chunk[(triton.cdiv(len(mu), block_b),)](
        mu,
        beta.contiguous(),
        episode.contiguous(),
        chunk.contiguous(),
        action,
        log_prob,
        seed,
        len(mu),
        count,
        BLOCK_B=block_b,
        BLOCK=block,
        EXPLORE=explore,
    )
    return action, log_prob
