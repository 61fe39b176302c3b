"""Triton face of `windowed_attention`: online softmax; a tile of the ring is read once for all heads that share it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

LARGEST_D = 128
LOG2_E = 1.4426950408889634  # exp(x) = exp2(x log2 e), and the hardware has exp2


@triton.jit
def _add_tiles(
    b_query,
    state,
    ring,
    scale_log2,
    begin,
    end,
    length,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    p_keys, p_values, p_key_scale, p_value_scale = ring
    b_out, b_max, b_sum = state
    o_d = tl.arange(0, BLOCK_D)
    for n0 in tl.range(begin, end, BLOCK_N):
        o_n = n0 + tl.arange(0, BLOCK_N)
        o_tile = o_n[:, None] * D + o_d[None, :]
        m_n = o_n < length
        if MASKED:
            m_tile = m_n[:, None] & (o_d < D)[None, :]
            b_key = tl.load(p_keys + o_tile, mask=m_tile, other=0)
            b_value = tl.load(p_values + o_tile, mask=m_tile, other=0)
        else:
            b_key = tl.load(p_keys + o_tile)
            b_value = tl.load(p_values + o_tile)
        b_score = tl.dot(b_query, tl.trans(b_key.to(b_query.dtype)), input_precision=PRECISION)
        if INT8:
            b_score *= tl.load(p_key_scale + o_n, mask=m_n, other=0.0)[None, :]
        if MASKED:
            b_score = tl.where(m_n[None, :], b_score, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_score, 1) * scale_log2)
        b_weight = tl.exp2(b_score * scale_log2 - b_new_max[:, None])
        b_shrink = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, 1)
        if INT8:
            b_weight *= tl.load(p_value_scale + o_n, mask=m_n, other=0.0)[None, :]
        b_out *= b_shrink[:, None]
        b_out = tl.dot(b_weight.to(b_query.dtype), b_value.to(b_query.dtype), b_out, input_precision=PRECISION)
        b_max = b_new_max
    return b_out, b_max, b_sum


@triton.jit
def _windowed_attention(
    p_query,
    p_keys,
    p_values,
    p_length,
    p_key_scale,
    p_value_scale,
    p_out,
    M,
    C,
    key_stride,
    value_stride,
    key_scale_stride,
    value_scale_stride,
    scale_log2,
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Blocks of queries are the fastest index: programs that read the same ring run together and share it in L2.
    R: tl.constexpr = H // G
    blocks = tl.cdiv(M * R, BLOCK_M)
    i_m, i_g = tl.program_id(0) % blocks, tl.program_id(0) // blocks % G
    i_b = (tl.program_id(0) // blocks // G).to(tl.int64)
    length = tl.minimum(tl.load(p_length + i_b), C)
    p_keys += i_b * key_stride + i_g * C * D
    p_values += i_b * value_stride + i_g * C * D
    if INT8:
        p_key_scale += i_b * key_scale_stride + i_g * C
        p_value_scale += i_b * value_scale_stride + i_g * C
    ring = p_keys, p_values, p_key_scale, p_value_scale

    # Row r of the block is head r % R of token r // R.
    o_r, o_d = i_m * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    o_query = (o_r // R * H + i_g * R + o_r % R)[:, None] * D + o_d[None, :]
    m_query = (o_r < M * R)[:, None] & (o_d < D)[None, :]
    b_query = tl.load(p_query + i_b * M * H * D + o_query, mask=m_query, other=0)

    b_out, b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    state = b_out, tl.full([BLOCK_M], float("-inf"), tl.float32), b_sum
    whole = 0  # tokens in tiles that need no mask
    if D == BLOCK_D:
        whole = tl.maximum(length, 0) // BLOCK_N * BLOCK_N
        state = _add_tiles(
            b_query, state, ring, scale_log2, 0, whole, length, D, BLOCK_N, BLOCK_D, False, INT8, PRECISION
        )
    b_out, _, b_sum = _add_tiles(
        b_query, state, ring, scale_log2, whole, length, length, D, BLOCK_N, BLOCK_D, True, INT8, PRECISION
    )
    b_out *= (1.0 / tl.where(length > 0, b_sum, 1.0))[:, None]
    tl.store(p_out + i_b * M * H * D + o_query, b_out.to(p_out.dtype.element_ty), mask=m_query)


def _tiles(rows: int, d: int, dtype: torch.dtype, int8: bool) -> dict[str, int]:
    """Sizes whose shared memory fits sm_80, sm_90 and sm_100 and whose registers do not spill there."""
    block_d = max(16, triton.next_power_of_2(d))
    block_m, block_n, stages = (32, 32, 2) if dtype == torch.float32 else (128, 32 if int8 else 64, 3)
    block_m = min(block_m, max(16, triton.next_power_of_2(rows)))
    warps = 8 if block_m * block_d * dtype.itemsize >= 128 * 128 else 4
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": warps, "num_stages": stages}


@face
def windowed_attention(
    query: Tensor,  # [B, M, H, D] float32, bfloat16 or float16
    keys: Tensor,  # [B, G, C, D] as query, or int8; the batch may be strided
    values: Tensor,  # [B, G, C, D] likewise
    length: Tensor,  # [B] int32
    key_scale: Tensor | None = None,  # [B, G, C] float32
    value_scale: Tensor | None = None,  # [B, G, C] float32
) -> Tensor:  # [B, M, H, D], dtype of query
    """A program per block of queries, key head and episode; the H / G query heads of a key head are rows of one block.

    Products are on tensor cores: of bfloat16 or float16 as they are, of float32 in three products of TensorFloat-32
    ("tf32x3"), which keeps about float32's precision. Levels of int8 are exact in all three; their scales go onto the
    scores and the weights, so that no ring is dequantised. Softmax and sums are in float32.

    Raises ValueError if D is over 128.
    """
    (b, m, h, d), (g, c) = query.shape, keys.shape[1:3]
    if d > LARGEST_D:
        raise ValueError(f"query has heads of {d} numbers; this face (Triton) takes at most {LARGEST_D}")
    query = query.contiguous()
    out = torch.empty_like(query)
    if not out.numel():
        return out
    int8 = keys.dtype == torch.int8
    tiles = _tiles(m * h // g, d, query.dtype, int8)
    strides = [0 if t is None else t.stride(0) for t in (keys, values, key_scale, value_scale)]
    _windowed_attention[(triton.cdiv(m * h // g, tiles["BLOCK_M"]) * g * b,)](
        query,
        keys,
        values,
        length.contiguous(),
        key_scale,
        value_scale,
        out,
        m,
        c,
        *strides,
        LOG2_E * d**-0.5,
        H=h,
        G=g,
        D=d,
        INT8=int8,
        PRECISION="tf32x3",
        **tiles,
    )
    return out
