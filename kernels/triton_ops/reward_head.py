"""Triton face of `reward_head`: pooling, normalisation and the three layers in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

EPS = tl.constexpr(1e-5)
LARGEST = 256  # of D2 and K: what a program holds in registers
ROWS = 16  # of a program, at least: the smallest block that tensor cores multiply
BLOCK = 32  # of D at a time


@triton.jit
def _pooled(pointers, b_count, rows, o_d, K, D):
    p_feature, p_first, p_total = pointers
    o_b, o_k, m_r = rows
    m_x = m_r[:, None] & (o_d < D)[None, :]
    b_feature = tl.load(p_feature + (o_b * K + o_k)[:, None] * D + o_d[None, :], mask=m_x, other=0.0)
    b_change = b_feature - tl.load(p_first + o_b[:, None] * D + o_d[None, :], mask=m_x, other=0.0)
    b_total = _moved_on(p_feature, p_total, o_b, o_k, m_x, o_d, K, D)
    return b_feature, b_change, b_total / b_count[:, None]


@triton.jit
def _moved_on(p_feature, p_total, o_b, o_k, m_x, o_d, K, D):
    b_total = tl.load(p_total + o_b[:, None] * D + o_d[None, :], mask=m_x, other=0.0)
    for k in range(K):
        m_k = m_x & (o_k >= k)[:, None]
        b_total += tl.load(p_feature + (o_b * K + k)[:, None] * D + o_d[None, :], mask=m_k, other=0.0)
    return b_total


@triton.jit
def _squares(b_x, b_mean, m_d):
    b_x = tl.where(m_d[None, :], b_x - b_mean[:, None], 0.0)
    return tl.sum(b_x * b_x, 1)


@triton.jit
def _statistics(pointers, b_count, rows, K, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    # Mean and 1 / deviation of what is pooled.
    b_mean = tl.zeros([BLOCK_R], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        b_0, b_1, b_2 = _pooled(pointers, b_count, rows, d0 + tl.arange(0, BLOCK_D), K, D)
        b_mean += tl.sum(b_0 + b_1 + b_2, 1)
    b_mean /= 3 * D
    b_variance = tl.zeros([BLOCK_R], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        o_d = d0 + tl.arange(0, BLOCK_D)
        b_0, b_1, b_2 = _pooled(pointers, b_count, rows, o_d, K, D)
        b_variance += _squares(b_0, b_mean, o_d < D) + _squares(b_1, b_mean, o_d < D) + _squares(b_2, b_mean, o_d < D)
    return b_mean, 1.0 / tl.sqrt_rn(b_variance / (3 * D) + EPS)


@triton.jit
def _add_product(b_out, b_x, statistics, layer, first, o_1, o_d, D1, D):
    # Onto b_out, normalised numbers times the weights of the inputs from `first` on, of which there are 3 D.
    b_mean, b_inverse = statistics
    p_gain, p_shift, p_weight = layer
    m_d, o_x = o_d < D, first + o_d
    b_gain = tl.load(p_gain + o_x, mask=m_d, other=0.0)[None, :]
    b_x = (b_x - b_mean[:, None]) * b_inverse[:, None] * b_gain
    b_x += tl.load(p_shift + o_x, mask=m_d, other=0.0)[None, :]
    m_w = m_d[:, None] & (o_1 < D1)[None, :]
    b_w = tl.load(p_weight + o_1[None, :] * (3 * D) + o_x[:, None], mask=m_w, other=0.0)
    return tl.dot(b_x, b_w, b_out, input_precision="tf32x3")


@triton.jit
def _relu(b_x):
    return tl.where(b_x < 0, 0.0, b_x)  # what is not a number stays so


@triton.jit
def _hidden(
    pointers,
    b_count,
    rows,
    statistics,
    layer,
    o_1,
    K,
    D,
    D1,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_1: tl.constexpr,
):
    b_hidden = tl.zeros([BLOCK_R, BLOCK_1], tl.float32)
    for d0 in range(0, D, BLOCK_D):
        o_d = d0 + tl.arange(0, BLOCK_D)
        b_0, b_1, b_2 = _pooled(pointers, b_count, rows, o_d, K, D)
        b_hidden = _add_product(b_hidden, b_0, statistics, layer, 0, o_1, o_d, D1, D)
        b_hidden = _add_product(b_hidden, b_1, statistics, layer, D, o_1, o_d, D1, D)
        b_hidden = _add_product(b_hidden, b_2, statistics, layer, 2 * D, o_1, o_d, D1, D)
    return b_hidden


@triton.jit
def _move_on(p_feature, p_total, p_count, b_count, rows, K, D, BLOCK_D: tl.constexpr):
    # All threads have read the sums; from here on the row of an episode's last frame alone reads and writes them.
    o_b, o_k, m_r = rows
    tl.debug_barrier()
    m_last = m_r & (o_k == K - 1)
    tl.store(p_count + o_b, b_count, mask=m_last)
    for d0 in range(0, D, BLOCK_D):
        o_d = d0 + tl.arange(0, BLOCK_D)
        m_x = m_last[:, None] & (o_d < D)[None, :]
        b_total = _moved_on(p_feature, p_total, o_b, o_k, m_x, o_d, K, D)
        tl.store(p_total + o_b[:, None] * D + o_d[None, :], b_total, mask=m_x)


@triton.jit
def _reward_head(
    p_feature,
    p_first,
    p_total,
    p_count,
    p_gain,
    p_shift,
    p_weight1,
    p_bias1,
    p_weight2,
    p_bias2,
    p_weight3,
    p_bias3,
    p_reward,
    p_stop,
    threshold,
    B,
    K,
    D,
    D1,
    D2,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,
):
    # A row is a new frame; a program has whole episodes, since it moves their sums on.
    BLOCK_R: tl.constexpr = BLOCK_B * BLOCK_K
    o_r = tl.arange(0, BLOCK_R)
    o_b, o_k = tl.program_id(0).to(tl.int64) * BLOCK_B + o_r // BLOCK_K, o_r % BLOCK_K
    m_r = (o_b < B) & (o_k < K)
    b_count = tl.load(p_count + o_b, mask=m_r, other=0.0) + (o_k + 1)
    pointers, rows = (p_feature, p_first, p_total), (o_b, o_k, m_r)
    statistics = _statistics(pointers, b_count, rows, K, D, BLOCK_R, BLOCK_D)
    o_2 = tl.arange(0, BLOCK_2)
    b_hidden2 = tl.zeros([BLOCK_R, BLOCK_2], tl.float32)
    for h0 in range(0, D1, BLOCK_1):
        o_1 = h0 + tl.arange(0, BLOCK_1)
        layer = p_gain, p_shift, p_weight1
        b_hidden = _hidden(pointers, b_count, rows, statistics, layer, o_1, K, D, D1, BLOCK_R, BLOCK_D, BLOCK_1)
        b_hidden = _relu(b_hidden + tl.load(p_bias1 + o_1, mask=o_1 < D1, other=0.0)[None, :])
        m_w = (o_1 < D1)[:, None] & (o_2 < D2)[None, :]
        b_w = tl.load(p_weight2 + o_2[None, :] * D1 + o_1[:, None], mask=m_w, other=0.0)
        b_hidden2 = tl.dot(b_hidden, b_w, b_hidden2, input_precision="tf32x3")
    b_hidden2 = _relu(b_hidden2 + tl.load(p_bias2 + o_2, mask=o_2 < D2, other=0.0)[None, :])
    b_out = tl.sum(b_hidden2 * tl.load(p_weight3 + o_2, mask=o_2 < D2, other=0.0)[None, :], 1) + tl.load(p_bias3)
    b_reward = 1.0 / (1.0 + tl.exp(-b_out))
    tl.store(p_reward + o_b * K + o_k, b_reward, mask=m_r)
    tl.store(p_stop + o_b * K + o_k, b_reward > threshold, mask=m_r)
    _move_on(p_feature, p_total, p_count, b_count, rows, K, D, BLOCK_D)


@face
def reward_head(
    feature: Tensor,  # [B, K, D] float32
    first: Tensor,  # [B, D] float32
    total: Tensor,  # [B, D] float32, contiguous; moved on in place
    count: Tensor,  # [B, 1] float32, contiguous; moved on in place
    gain: Tensor,  # [3 D] float32
    shift: Tensor,  # [3 D] float32
    weight1: Tensor,  # [D1, 3 D] float32
    bias1: Tensor,  # [D1] float32
    weight2: Tensor,  # [D2, D1] float32
    bias2: Tensor,  # [D2] float32
    weight3: Tensor,  # [1, D2] float32
    bias3: Tensor,  # [1] float32
    threshold: float,
) -> tuple[Tensor, Tensor]:  # reward [B, K] float32, stop [B, K] bool
    """A program per 16 new frames, of whole episodes. Products are three of TensorFloat-32 each: about float32.

    Raises ValueError if K or D2 is over 256.
    """
    (b, k, d), d1, d2 = feature.shape, len(weight1), len(weight2)
    if max(k, d2) > LARGEST:
        raise ValueError(f"feature has {k} frames and weight2 {d2} rows; this face (Triton) takes at most {LARGEST}")
    reward, stop = feature.new_empty(b, k), feature.new_empty(b, k, dtype=torch.bool)
    block_k = triton.next_power_of_2(k)
    block_b = max(1, ROWS // block_k)
    if b:
        others = (t.contiguous() for t in (gain, shift, weight1, bias1, weight2, bias2, weight3, bias3))
        _reward_head[(triton.cdiv(b, block_b),)](
            feature.contiguous(),
            first.contiguous(),
            total,
            count,
            *others,
            reward,
            stop,
            threshold,
            b,
            k,
            d,
            d1,
            d2,
            BLOCK_B=block_b,
            BLOCK_K=block_k,
            BLOCK_D=BLOCK,
            BLOCK_1=64,
            BLOCK_2=max(16, triton.next_power_of_2(d2)),
            num_warps=8,
        )
    return reward, stop
