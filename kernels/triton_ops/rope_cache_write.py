"""Triton face of `rope_cache_write`: the angles of a token are found once for the heads that share a key head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

EPS = tl.constexpr(1e-6)
LEAST_SCALE = tl.constexpr(1e-12)  # of a token whose numbers are all 0
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds what is below 2^22 to whole numbers, halves to even


@triton.jit
def _angles(p_time_angle, p_space_angle, b_frame, o_place, o_d, m_m, HALF: tl.constexpr):  # cosines and sines
    m_d = o_d < HALF
    b_time = tl.load(p_time_angle + o_d, mask=m_d, other=0.0)
    m_low = m_m[:, None] & m_d[None, :]
    b_space = tl.load(p_space_angle + o_place[:, None] * HALF + o_d[None, :], mask=m_low, other=0.0)
    b_angle = b_frame.to(tl.float32)[:, None] * b_time[None, :] + b_space
    return tl.cos(b_angle), tl.sin(b_angle)


@triton.jit
def _halves(p_low, m_low, HALF: tl.constexpr):
    b_low = tl.load(p_low, mask=m_low, other=0.0).to(tl.float32)
    return b_low, tl.load(p_low + HALF, mask=m_low, other=0.0).to(tl.float32)


@triton.jit
def _gains(p_gain, o_d, HALF: tl.constexpr):
    b_low = tl.load(p_gain + o_d, mask=o_d < HALF, other=0.0)[None, :]
    return b_low, tl.load(p_gain + HALF + o_d, mask=o_d < HALF, other=0.0)[None, :]


@triton.jit
def _rotated(halves, gains, b_cosine, b_sine, D: tl.constexpr):
    b_low, b_high = halves
    b_square = tl.sum(b_low * b_low, 1) + tl.sum(b_high * b_high, 1)
    b_inverse = (1.0 / tl.sqrt_rn(b_square / D + EPS))[:, None]
    b_low, b_high = b_low * b_inverse * gains[0], b_high * b_inverse * gains[1]
    return b_low * b_cosine - b_high * b_sine, b_high * b_cosine + b_low * b_sine


@triton.jit
def _write(halves, p_ring, p_scale, o_slot, o_low, m_low, m_m, HALF: tl.constexpr, INT8: tl.constexpr):
    b_low, b_high = halves
    if INT8:
        b_most = tl.maximum(tl.max(tl.abs(b_low), 1), tl.max(tl.abs(b_high), 1))
        b_step = tl.maximum(b_most / 127, LEAST_SCALE)
        b_total = tl.sum(tl.abs(b_low) + tl.abs(b_high), 1)
        b_step = tl.where(b_total == b_total, b_step, b_total)  # max passes over what is not a number
        tl.store(p_scale + o_slot, b_step, mask=m_m)
        b_low = tl.div_rn(b_low, b_step[:, None]) + ROUNDER - ROUNDER
        b_high = tl.div_rn(b_high, b_step[:, None]) + ROUNDER - ROUNDER
    tl.store(p_ring + o_slot[:, None] * (2 * HALF) + o_low, b_low.to(p_ring.dtype.element_ty), mask=m_low)
    tl.store(p_ring + o_slot[:, None] * (2 * HALF) + o_low + HALF, b_high.to(p_ring.dtype.element_ty), mask=m_low)


@triton.jit
def _rope_cache_write(
    p_qkv,
    p_query_gain,
    p_key_gain,
    p_frame,
    p_place,
    p_time_angle,
    p_space_angle,
    p_keys,
    p_values,
    p_key_scale,
    p_value_scale,
    p_query,
    M,
    L,
    C,
    key_stride,
    value_stride,
    key_scale_stride,
    value_scale_stride,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INT8: tl.constexpr,
):
    R: tl.constexpr = H // G
    HALF: tl.constexpr = D // 2
    blocks = tl.cdiv(M, BLOCK_M)
    i_m, i_g = tl.program_id(0) % blocks, tl.program_id(0) // blocks % G
    i_b = (tl.program_id(0) // blocks // G).to(tl.int64)
    o_m, o_d = i_m * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_m, o_low = o_m < M, o_d[None, :]
    m_low = m_m[:, None] & (o_d < HALF)[None, :]
    b_frame = tl.load(p_frame + i_b) + o_m // L
    b_cosine, b_sine = _angles(p_time_angle, p_space_angle, b_frame, o_m % L, o_d, m_m, HALF)

    p_token = p_qkv + (i_b * M + o_m)[:, None] * ((H + 2 * G) * D) + o_low
    p_out = p_query + (i_b * M + o_m)[:, None] * (H * D) + o_low
    gains = _gains(p_query_gain, o_d, HALF)
    for i_h in range(i_g * R, i_g * R + R):
        b_low, b_high = _rotated(_halves(p_token + i_h * D, m_low, HALF), gains, b_cosine, b_sine, D)
        tl.store(p_out + i_h * D, b_low.to(p_query.dtype.element_ty), mask=m_low)
        tl.store(p_out + i_h * D + HALF, b_high.to(p_query.dtype.element_ty), mask=m_low)

    o_slot = (tl.load(p_place + i_b) % C + o_m) % C
    p_keys += i_b * key_stride + i_g * C * D
    p_values += i_b * value_stride + i_g * C * D
    if INT8:
        p_key_scale += i_b * key_scale_stride + i_g * C
        p_value_scale += i_b * value_scale_stride + i_g * C
    key = _halves(p_token + (H + i_g) * D, m_low, HALF)
    key = _rotated(key, _gains(p_key_gain, o_d, HALF), b_cosine, b_sine, D)
    _write(key, p_keys, p_key_scale, o_slot, o_low, m_low, m_m, HALF, INT8)
    value = _halves(p_token + (H + G + i_g) * D, m_low, HALF)
    _write(value, p_values, p_value_scale, o_slot, o_low, m_low, m_m, HALF, INT8)


@face
def rope_cache_write(
    qkv: Tensor,  # [B, M, (H + 2 G) D] float32, bfloat16 or float16
    query_gain: Tensor,  # [D] float32
    key_gain: Tensor,  # [D] float32
    frame: Tensor,  # [B] int32
    place: Tensor,  # [B] int32
    time_angle: Tensor,  # [D / 2] float32
    space_angle: Tensor,  # [L, D / 2] float32
    keys: Tensor,  # [B, G, C, D] as qkv, or int8; written; the batch may be strided
    values: Tensor,  # [B, G, C, D] likewise
    key_scale: Tensor | None = None,  # [B, G, C] float32; written
    value_scale: Tensor | None = None,  # [B, G, C] float32
) -> Tensor:  # [B, M, H, D]
    """A program per block of tokens, key head and episode: its H / G query heads, its key head and its value head.

    No two programs write the same place: a chunk has at most C tokens, so each lands somewhere else.
    """
    (b, m, width), (g, c, d) = qkv.shape, keys.shape[1:]
    h = width // d - 2 * g
    query = torch.empty(b, m, h, d, dtype=qkv.dtype, device=qkv.device)
    if not query.numel():
        return query
    block_d = triton.next_power_of_2(d // 2)
    block_m = max(1, min(triton.next_power_of_2(m), 512 // block_d))
    strides = [0 if t is None else t.stride(0) for t in (keys, values, key_scale, value_scale)]
    _rope_cache_write[(triton.cdiv(m, block_m) * g * b,)](
        qkv.contiguous(),
        query_gain.contiguous(),
        key_gain.contiguous(),
        frame.contiguous(),
        place.contiguous(),
        time_angle.contiguous(),
        space_angle.contiguous(),
        keys,
        values,
        key_scale,
        value_scale,
        query,
        m,
        len(space_angle),
        c,
        *strides,
        H=h,
        G=g,
        D=d,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        INT8=key_scale is not None,
    )
    return query
