"""Triton face of `ppo_loss`: loss and gradient in one pass over the chunks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

FARTHEST = tl.constexpr(20.0)  # of a log-ratio: exp stays finite
LOG_2 = tl.constexpr(0.6931471805599453)
TILE = 1024  # numbers of a program
LARGEST_COUNT = 8192  # a chunk is held in registers


@triton.jit
def _clamp(b_x, low, high):
    # By comparison, so that what is not a number stays so.
    return tl.where(b_x < low, low, tl.where(b_x > high, high, b_x))


@triton.jit
def _ppo_loss(
    p_mu,
    p_beta,
    p_action,
    p_behaviour,
    p_advantage,
    p_sums,
    p_of_mu,
    p_of_beta,
    B,
    count,
    low,
    high,
    BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_b, o_n = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, BLOCK)
    m_b = o_b < B
    m_x = m_b[:, None] & (o_n < count)[None, :]
    o_x = o_b.to(tl.int64)[:, None] * count + o_n[None, :]
    b_beta = tl.load(p_beta + o_x, mask=m_x, other=0.0)
    b_distance = tl.load(p_mu + o_x, mask=m_x, other=0.0) - tl.load(p_action + o_x, mask=m_x, other=0.0)
    b_inverse = tl.exp(-b_beta)
    b_far = tl.abs(b_distance) * b_inverse
    b_log_ratio = -tl.sum(tl.where(m_x, b_far + b_beta + LOG_2, 0.0), 1)
    b_log_ratio -= tl.load(p_behaviour + o_b, mask=m_b, other=0.0)
    b_advantage = tl.load(p_advantage + o_b, mask=m_b, other=0.0)

    b_ratio = tl.exp(_clamp(b_log_ratio, -FARTHEST, FARTHEST))
    b_clipped = _clamp(b_ratio, low, high)
    b_gain, b_clipped_gain = b_ratio * b_advantage, b_clipped * b_advantage
    b_loss = -tl.where(b_clipped_gain < b_gain, b_clipped_gain, b_gain)
    tl.store(p_sums + tl.program_id(0), tl.sum(tl.where(m_b, b_loss, 0.0), 0))
    is_clipped = m_b & (b_ratio != b_clipped)
    tl.store(p_sums + tl.num_programs(0) + tl.program_id(0), tl.sum(is_clipped.to(tl.float32), 0))

    passes = (b_gain <= b_clipped_gain) & (tl.abs(b_log_ratio) <= FARTHEST)
    b_slope = tl.where(passes, -b_gain / B, 0.0)[:, None]
    b_sign = tl.where(b_distance > 0, -1.0, tl.where(b_distance < 0, 1.0, 0.0))
    tl.store(p_of_mu + o_x, b_slope * b_sign * b_inverse, mask=m_x)
    tl.store(p_of_beta + o_x, b_slope * (b_far - 1.0), mask=m_x)


@face
def ppo_loss(
    mu: Tensor,  # [B, K, A] float32
    beta: Tensor,  # [B, K, A] float32
    action: Tensor,  # [B, K, A] float32
    behaviour: Tensor,  # [B] float32
    advantage: Tensor,  # [B] float32
    clip: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # loss, share of clipped ratios; the loss's gradients for mu and beta
    """A program per block of chunks; their sums are added up in a fixed order.

    Raises ValueError if K A is over 8192.
    """
    mu, b, count = mu.contiguous(), len(mu), mu.shape[1] * mu.shape[2]
    if count > LARGEST_COUNT:
        raise ValueError(f"mu has {count} numbers a chunk; this face (Triton) takes at most {LARGEST_COUNT}")
    block = triton.next_power_of_2(max(count, 1))
    block_b = max(1, TILE // block)
    programs = triton.cdiv(b, block_b)
    sums, of_mu, of_beta = mu.new_empty(2, programs), torch.empty_like(mu), torch.empty_like(mu)
    _ppo_loss[(programs,)](
        mu,
        beta.contiguous(),
        action.contiguous(),
        behaviour.contiguous(),
        advantage.contiguous(),
        sums,
        of_mu,
        of_beta,
        b,
        count,
        1 - clip,
        1 + clip,
        BLOCK_B=block_b,
        BLOCK=block,
    )
    return sums[0].sum() / b, sums[1].sum() / b, of_mu, of_beta
