"""Triton face of `spatial_softmax`: features are read once, the sums rescaled wherever a greater value is found."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32; not -inf, whose difference to itself is not a number
TILE = 2048  # numbers of a program at a time
BLOCK_C = 16  # channels of a program: 64 bytes of each place


@triton.jit
def _spatial_softmax(p_rows, p_out, height, width, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    places, blocks = height * width, tl.cdiv(C, BLOCK_C)
    i_b, i_c = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_highest = tl.full([BLOCK_C], LOWEST, tl.float32)
    b_total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_x, b_y, b_peak = b_total, b_total, b_total
    for p0 in range(0, places, BLOCK_P):
        o_p = p0 + tl.arange(0, BLOCK_P)
        m_x = (o_p < places)[:, None] & m_c[None, :]
        b_value = tl.load(p_rows + (i_b * places + o_p)[:, None] * C + o_c[None, :], mask=m_x, other=0.0)
        b_value = b_value.to(tl.float32)
        b_higher = tl.maximum(b_highest, tl.max(tl.where(m_x, b_value, LOWEST), 0))
        b_weight = tl.where(m_x, tl.exp(b_value - b_higher[None, :]), 0.0)
        b_less = tl.exp(b_highest - b_higher)[None, :]
        b_highest = b_higher
        b_right = 2.0 * (o_p % width).to(tl.float32) / (width - 1) - 1.0
        b_down = 2.0 * (o_p // width).to(tl.float32) / (height - 1) - 1.0
        b_total = b_total * b_less + b_weight
        b_x = b_x * b_less + b_weight * b_right[:, None]
        b_y = b_y * b_less + b_weight * b_down[:, None]
        b_peak = b_peak * b_less + b_weight * b_value
    b_all = tl.sum(b_total, 0)
    p_out += i_b * 3 * C + o_c
    tl.store(p_out, (tl.sum(b_x, 0) / b_all).to(p_out.dtype.element_ty), mask=m_c)
    tl.store(p_out + C, (tl.sum(b_y, 0) / b_all).to(p_out.dtype.element_ty), mask=m_c)
    tl.store(p_out + 2 * C, (tl.sum(b_peak, 0) / b_all).to(p_out.dtype.element_ty), mask=m_c)


@face
def spatial_softmax(
    rows: Tensor,  # [B, H, W, C] float32, or half precision, computed in float32; H, W >= 2
) -> Tensor:  # [B, 3 C] of the same dtype
    """A program per image and 16 channels."""
    b, height, width, c = rows.shape
    out = torch.empty(b, 3 * c, dtype=rows.dtype, device=rows.device)
    if out.numel():
        block_c = min(BLOCK_C, triton.next_power_of_2(c))
        block_p = min(TILE // block_c, triton.next_power_of_2(height * width))
        _spatial_softmax[(b * triton.cdiv(c, block_c),)](
            rows.contiguous(),
            out,
            height,
            width,
            c,
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            num_warps=8 if block_p * block_c > TILE // 2 else 4,
        )
    return out
