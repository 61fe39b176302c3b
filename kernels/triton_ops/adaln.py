"""Triton faces of `adaln` and of its gradient: a row is read and written once, sums are in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

EPS = tl.constexpr(1e-5)
LARGEST_D = 8192  # a row is held in registers
TILE = 4096  # numbers of a program at a time
ROWS = 32  # that a program of the gradient sums over


@triton.jit
def _row(p, o_d, m_d):
    return tl.load(p + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normalised(b_x, m_x, D: tl.constexpr):  # and 1 / deviation
    b_x = tl.where(m_x, b_x - (tl.sum(b_x, 1) / D)[:, None], 0.0)
    b_inverse = (1.0 / tl.sqrt_rn(tl.sum(b_x * b_x, 1) / D + EPS))[:, None]
    return b_x * b_inverse, b_inverse


@triton.jit
def _adaln(
    p_x,
    p_scale,
    p_shift,
    p_branch,
    p_gate,
    p_total,
    p_y,
    N,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BRANCH: tl.constexpr,
):
    blocks = tl.cdiv(N, BLOCK_N)
    i_b, i_n = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_n, o_d = i_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_x = (o_n < N)[:, None] & m_d[None, :]
    o_x = (i_b * N + o_n)[:, None] * D + o_d[None, :]
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    if BRANCH:
        b_x += _row(p_gate + i_b * D, o_d, m_d) * tl.load(p_branch + o_x, mask=m_x, other=0.0).to(tl.float32)
        tl.store(p_total + o_x, b_x.to(p_total.dtype.element_ty), mask=m_x)
    b_z, _ = _normalised(b_x, m_x, D)
    b_y = b_z * (1.0 + _row(p_scale + i_b * D, o_d, m_d)) + _row(p_shift + i_b * D, o_d, m_d)
    tl.store(p_y + o_x, b_y.to(p_y.dtype.element_ty), mask=m_x)


@triton.jit
def _adaln_backward(
    p_grad_sum,
    p_grad_y,
    p_total,
    p_scale,
    p_branch,
    p_gate,
    p_grad_x,
    p_grad_branch,
    p_sums,
    N,
    parts,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BRANCH: tl.constexpr,
):
    # Sums over the rows of this program go to p_sums [3, B, parts, D]; the launcher adds the parts up.
    i_b, i_p = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_scale = 1.0 + _row(p_scale + i_b * D, o_d, m_d)
    b_of_scale = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_of_shift = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if BRANCH:
        b_gate = _row(p_gate + i_b * D, o_d, m_d)
        b_of_gate = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for n0 in range(i_p * ROWS, tl.minimum(i_p * ROWS + ROWS, N), BLOCK_N):
        o_n = n0 + tl.arange(0, BLOCK_N)
        m_x = (o_n < N)[:, None] & m_d[None, :]
        o_x = (i_b * N + o_n)[:, None] * D + o_d[None, :]
        b_z, b_inverse = _normalised(tl.load(p_total + o_x, mask=m_x, other=0.0).to(tl.float32), m_x, D)
        b_grad_y = tl.load(p_grad_y + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_of_scale += b_grad_y * b_z
        b_of_shift += b_grad_y
        b_up = b_grad_y * b_scale
        b_along = tl.sum(b_up * b_z, 1) / D
        b_grad_x = b_inverse * (b_up - (tl.sum(b_up, 1) / D)[:, None] - b_z * b_along[:, None])
        b_grad_x += tl.load(p_grad_sum + o_x, mask=m_x, other=0.0).to(tl.float32)
        tl.store(p_grad_x + o_x, b_grad_x.to(p_grad_x.dtype.element_ty), mask=m_x)
        if BRANCH:
            b_of_gate += b_grad_x * tl.load(p_branch + o_x, mask=m_x, other=0.0).to(tl.float32)
            tl.store(p_grad_branch + o_x, (b_gate * b_grad_x).to(p_grad_branch.dtype.element_ty), mask=m_x)
    p_sums += tl.program_id(0).to(tl.int64) * D + o_d
    stride = tl.num_programs(0).to(tl.int64) * D
    tl.store(p_sums, tl.sum(b_of_scale, 0), mask=m_d)
    tl.store(p_sums + stride, tl.sum(b_of_shift, 0), mask=m_d)
    if BRANCH:
        tl.store(p_sums + 2 * stride, tl.sum(b_of_gate, 0), mask=m_d)


def _tiles(d: int) -> dict[str, int]:
    if d > LARGEST_D:
        raise ValueError(f"x has rows of {d} numbers; this face (Triton) takes at most {LARGEST_D}")
    block_d = triton.next_power_of_2(d)
    return {"BLOCK_N": max(1, TILE // block_d), "BLOCK_D": block_d, "num_warps": 8 if block_d > 256 else 4}


@face
def adaln(
    x: Tensor,  # [B, N, D] float32, bfloat16 or float16
    scale: Tensor,  # [B, D]
    shift: Tensor,  # [B, D]
    branch: Tensor | None,  # [B, N, D]
    gate: Tensor | None,  # [B, D]
) -> tuple[Tensor, Tensor]:  # x + gate branch (nothing without a branch), y: [B, N, D]
    """A program per 4,096 numbers of an episode, or per row. What is stored is rounded once, from float32.

    Raises ValueError if D is over 8192.
    """
    b, n, d = x.shape
    tiles = _tiles(d)
    x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
    y, total = torch.empty_like(x), None
    if branch is not None:
        total, branch, gate = torch.empty_like(x), branch.contiguous(), gate.contiguous()
    if y.numel():
        _adaln[(triton.cdiv(n, tiles["BLOCK_N"]) * b,)](
            x, scale, shift, branch, gate, total, y, n, D=d, BRANCH=branch is not None, **tiles
        )
    return x.new_empty(0) if total is None else total, y


@face
def adaln_backward(
    grad_sum: Tensor,  # [B, N, D]
    grad_y: Tensor,  # [B, N, D]
    total: Tensor,  # [B, N, D], what was normalised
    scale: Tensor,  # [B, D]
    branch: Tensor | None,  # [B, N, D]
    gate: Tensor | None,  # [B, D]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # of x, scale, shift, branch and gate; the last two may be empty
    """A program per 32 rows of an episode. Sums are added up in a fixed order: the same input, the same gradient.

    Raises ValueError if D is over 8192.
    """
    b, n, d = total.shape
    tiles = _tiles(d)
    tiles["BLOCK_N"] = min(tiles["BLOCK_N"] // 2 or 1, ROWS)
    parts = triton.cdiv(n, ROWS)
    grad_sum, grad_y, total, scale = (t.contiguous() for t in (grad_sum, grad_y, total, scale))
    grad_x, grad_branch = torch.empty_like(total), None
    if branch is not None:
        branch, gate, grad_branch = branch.contiguous(), gate.contiguous(), torch.empty_like(total)
    sums = torch.empty(2 if branch is None else 3, b, parts, d, device=total.device)
    if total.numel():
        _adaln_backward[(b * parts,)](
            grad_sum,
            grad_y,
            total,
            scale,
            branch,
            gate,
            grad_x,
            grad_branch,
            sums,
            n,
            parts,
            D=d,
            ROWS=ROWS,
            BRANCH=branch is not None,
            **tiles,
        )
    of_scale, of_shift, *of_gate = (part.sum(1).to(total.dtype) for part in sums)  # in float32, rounded once
    if branch is None:
        return grad_x, of_scale, of_shift, total.new_empty(0, n, d), total.new_empty(0, d)
    return grad_x, of_scale, of_shift, grad_branch, *of_gate
