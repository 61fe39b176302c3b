"""Triton face of `adagn`: the mean of a tile of a group first, then its centred squares; tiles are merged.

A group of up to 8,192 numbers is read once. A larger one is read a second time to be normalised: from the cache, as one
program does both, or, beyond four tiles, by a second kernel with a program for each tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

LARGEST_EACH = 8192  # channels of a group: a place of a group is held in registers
LARGEST_IMAGE = 2**31 - 1  # numbers: within an image an offset has 32 bits, which halves the registers of a tile
TILE = 8192  # numbers of a program at a time
TILES = 4  # that a program takes of one group


@triton.jit
def _tile(p_x, i_b, i_p, P, C, c0, EACH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr):
    # Tile i_p of the group that begins at channel c0: its numbers; where they are in their image, which there are, and
    # how many.
    o_p, o_e = i_p * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_E)
    m_x = (o_p < P)[:, None] & (o_e < EACH)[None, :]
    o_x = o_p[:, None] * C + (c0 + o_e)[None, :]
    count = tl.minimum(P - i_p * BLOCK_P, BLOCK_P) * 1.0 * EACH
    return tl.load(p_x + i_b * P * C + o_x, mask=m_x, other=0.0).to(tl.float32), o_x, m_x, count


@triton.jit
def _moments(b_x, m_x, count):  # mean and sum of centred squares
    mean = tl.sum(b_x) / count
    b_x = tl.where(m_x, b_x - mean, 0.0)
    return mean, tl.sum(b_x * b_x)


@triton.jit
def _affine(p_weight, p_bias, p_scale, p_shift, o_c, o_condition, m_c, CONDITION: tl.constexpr):
    b_factor = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_summand = tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    if CONDITION:
        b_gain = 1.0 + tl.load(p_scale + o_condition, mask=m_c, other=0.0).to(tl.float32)
        b_factor *= b_gain
        b_summand = b_summand * b_gain + tl.load(p_shift + o_condition, mask=m_c, other=0.0).to(tl.float32)
    return b_factor[None, :], b_summand[None, :]


@triton.jit
def _store(p_y, o_x, m_x, b_y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        b_y = tl.where(b_y < 0.0, 0.0, b_y)  # what is not a number stays so
    elif ACTIVATION == "silu":
        b_y = b_y / (1.0 + tl.exp(-b_y))
    tl.store(p_y + o_x, b_y.to(p_y.dtype.element_ty), mask=m_x)


@triton.jit
def _adagn(
    p_x,
    p_weight,
    p_bias,
    p_scale,
    p_shift,
    p_y,
    P,
    C,
    stride,
    eps,
    TILES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CONDITION: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    i_b, c0 = (tl.program_id(0) // (C // EACH)).to(tl.int64), tl.program_id(0) % (C // EACH) * EACH
    b_x, o_x, m_x, count = _tile(p_x, i_b, 0, P, C, c0, EACH, BLOCK_P, BLOCK_E)
    mean, squares = _moments(b_x, m_x, count)
    for i_p in range(1, TILES):  # Chan et al. 1979: the moments of two parts together
        b_x, o_x, m_x, more = _tile(p_x, i_b, i_p, P, C, c0, EACH, BLOCK_P, BLOCK_E)
        more_mean, more_squares = _moments(b_x, m_x, more)
        away = more_mean - mean
        squares += more_squares + away * away * count * (more / (count + more))
        mean += away * (more / (count + more))
        count += more
    inverse = 1.0 / tl.sqrt_rn(squares / count + eps)
    o_e = tl.arange(0, BLOCK_E)
    b_factor, b_summand = _affine(
        p_weight, p_bias, p_scale, p_shift, c0 + o_e, i_b * stride + c0 + o_e, o_e < EACH, CONDITION
    )
    for i_n in range(TILES):
        if TILES > 1:
            b_x, o_x, m_x, more = _tile(p_x, i_b, i_n, P, C, c0, EACH, BLOCK_P, BLOCK_E)
        _store(p_y + i_b * P * C, o_x, m_x, (b_x - mean) * (inverse * b_factor) + b_summand, ACTIVATION)


@triton.jit
def _adagn_moments(
    p_x, p_mean, p_squares, P, C, tiles, EACH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr
):
    i_bg, i_p = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, c0 = (i_bg // (C // EACH)).to(tl.int64), i_bg % (C // EACH) * EACH
    b_x, _, m_x, count = _tile(p_x, i_b, i_p, P, C, c0, EACH, BLOCK_P, BLOCK_E)
    mean, squares = _moments(b_x, m_x, count)
    tl.store(p_mean + tl.program_id(0), mean)
    tl.store(p_squares + tl.program_id(0), squares)


@triton.jit
def _adagn_tiles(
    p_x,
    p_weight,
    p_bias,
    p_scale,
    p_shift,
    p_y,
    p_mean,
    p_squares,
    P,
    C,
    stride,
    eps,
    tiles,
    ACTIVATION: tl.constexpr,
    CONDITION: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # As _adagn, of one tile; every program merges the moments of all tiles of its group.
    i_bg, i_p = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_b, c0 = (i_bg // (C // EACH)).to(tl.int64), i_bg % (C // EACH) * EACH
    o_t, o_e = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_E)
    m_t, o_group = o_t < tiles, i_bg * tiles + o_t
    b_mean = tl.load(p_mean + o_group, mask=m_t, other=0.0)
    b_count = tl.where(m_t, tl.minimum(P - o_t * BLOCK_P, BLOCK_P) * 1.0 * EACH, 0.0)
    count = P * 1.0 * EACH
    mean = tl.sum(b_mean * (b_count / count))
    b_away = b_mean - mean
    squares = tl.sum(tl.load(p_squares + o_group, mask=m_t, other=0.0) + b_away * b_away * b_count)
    inverse = 1.0 / tl.sqrt_rn(squares / count + eps)
    b_factor, b_summand = _affine(
        p_weight, p_bias, p_scale, p_shift, c0 + o_e, i_b * stride + c0 + o_e, o_e < EACH, CONDITION
    )
    b_x, o_x, m_x, _ = _tile(p_x, i_b, i_p, P, C, c0, EACH, BLOCK_P, BLOCK_E)
    _store(p_y + i_b * P * C, o_x, m_x, (b_x - mean) * (inverse * b_factor) + b_summand, ACTIVATION)


def _tiles(places: int, c: int, each: int) -> dict[str, int]:
    if each > LARGEST_EACH:
        raise ValueError(f"x has groups of {each} channels; this face (Triton) takes at most {LARGEST_EACH}")
    if places * c > LARGEST_IMAGE:
        raise ValueError(f"x has images of {places * c} numbers; this face (Triton) takes at most {LARGEST_IMAGE}")
    block_e = triton.next_power_of_2(each)
    block_p = min(TILE // block_e, triton.next_power_of_2(places))
    warps = 8 if block_p * block_e > TILE // 4 else 4
    return {"EACH": each, "BLOCK_P": block_p, "BLOCK_E": block_e, "num_warps": warps}


@face
def adagn(
    rows: Tensor,  # [B, H, W, C] float32, or half precision, computed in float32
    groups: int,  # divides C
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    scale: Tensor | None,  # [B, C]
    shift: Tensor | None,  # [B, C], given with scale
    activation: str,  # none, relu or silu
    eps: float,
) -> Tensor:  # [B, H, W, C] of the same dtype, rounded once
    """A program per image and group, or per 8,192 numbers of it. An image gives the same alone and in a batch.

    Raises ValueError if a group has more than 8192 channels, or an image 2^31 numbers.
    """
    b, height, width, c = rows.shape
    places, each, stride = height * width, c // groups, 0
    shapes = _tiles(places, c, each)
    rows, y = rows.contiguous(), torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    if not y.numel():
        return y
    if scale is not None:  # halves of one tensor, in the main: they are read where they lie
        if scale.stride() != shift.stride() or scale.stride(1) != 1:
            scale, shift = scale.contiguous(), shift.contiguous()
        stride = scale.stride(0)
    tensors, numbers = (rows, weight.contiguous(), bias.contiguous(), scale, shift, y), (places, c, stride, eps)
    tiles, ending = triton.cdiv(places, shapes["BLOCK_P"]), {"ACTIVATION": activation, "CONDITION": scale is not None}
    if tiles <= TILES:
        _adagn[(b * groups,)](*tensors, *numbers, TILES=tiles, **ending, **shapes)
    else:
        grid = (b * groups * tiles,)
        parts = torch.empty(2, *grid, dtype=torch.float32, device=y.device)
        _adagn_moments[grid](rows, *parts, places, c, tiles, **shapes)
        most = triton.next_power_of_2(tiles)
        _adagn_tiles[grid](*tensors, *parts, *numbers, tiles, BLOCK_T=most, **ending, **shapes)
    return y
