"""Triton face of `action_map`: every program projects its pose anew, which costs less than to store it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from worldenv.kernels import face

# The drawing, as in worldenv/ops/action_map.py.
CHANNELS = tl.constexpr(4)
SIGMA_PX = tl.constexpr(1.5)
SIGMA_FINGER_PX = tl.constexpr(1.0)
STROKE_FLOOR = tl.constexpr(0.00033546262790251185)  # exp(-8)
TIP_CLOSED_M = tl.constexpr(0.012)
TIP_OPENING_M = tl.constexpr(0.033)
FINGER_M = tl.constexpr(0.05)
HAND_HALF_M = tl.constexpr(0.05)
TOOL_M = tl.constexpr(0.4)
FADE_HEIGHT_M = tl.constexpr(0.25)
NEAR_M = tl.constexpr(0.05)
BLOCK = 512  # pixels of a program, of all channels


@triton.jit
def _projected(p_projection, x, y, z):
    u = tl.load(p_projection) * x + tl.load(p_projection + 1) * y + tl.load(p_projection + 2) * z
    v = tl.load(p_projection + 4) * x + tl.load(p_projection + 5) * y + tl.load(p_projection + 6) * z
    w = tl.load(p_projection + 8) * x + tl.load(p_projection + 9) * y + tl.load(p_projection + 10) * z
    return u + tl.load(p_projection + 3), v + tl.load(p_projection + 7), w + tl.load(p_projection + 11)


@triton.jit
def _cut(u, v, w, other_u, other_v, other_w):  # and divided: the pixel of the point, or of where the line leaves NEAR_M
    step = tl.where(w < NEAR_M, (NEAR_M - w) / (other_w - w), 0.0)
    w = tl.where(w < NEAR_M, w + step * (other_w - w), w)
    return (u + step * (other_u - u)) / w, (v + step * (other_v - v)) / w


@triton.jit
def _stroke(p_projection, begin_x, begin_y, begin_z, end_x, end_y, end_z, sigma_px, b_column, b_row):
    au, av, aw = _projected(p_projection, begin_x, begin_y, begin_z)
    bu, bv, bw = _projected(p_projection, end_x, end_y, end_z)
    ax, ay = _cut(au, av, aw, bu, bv, bw)
    bx, by = _cut(bu, bv, bw, au, av, aw)
    dx, dy = bx - ax, by - ay
    b_column, b_row = b_column - ax, b_row - ay
    b_along = (b_column * dx + b_row * dy) / tl.maximum(dx * dx + dy * dy, 1e-12)
    b_along = tl.minimum(tl.maximum(b_along, 0.0), 1.0)
    b_column, b_row = b_column - b_along * dx, b_row - b_along * dy
    b_value = tl.exp((b_column * b_column + b_row * b_row) / (-2.0 * sigma_px * sigma_px))
    return tl.where(tl.maximum(aw, bw) > NEAR_M, tl.where(b_value >= STROKE_FLOOR, b_value, 0.0), 0.0)


@triton.jit
def _sinc(x):  # sin(x) / x
    return tl.where(x == 0.0, 1.0, tl.sin(x) / tl.where(x == 0.0, 1.0, x))


@triton.jit
def _action_map(p_proprio, p_projection, p_out, height, width, BLOCK: tl.constexpr):
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK)
    i_b, i_p = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    o_p = i_p * BLOCK + tl.arange(0, BLOCK)
    b_column, b_row = (o_p % width).to(tl.float32) + 0.5, (o_p // width).to(tl.float32) + 0.5
    p_proprio += i_b * 7
    x, y, z = tl.load(p_proprio), tl.load(p_proprio + 1), tl.load(p_proprio + 2)
    wx, wy, wz = tl.load(p_proprio + 3), tl.load(p_proprio + 4), tl.load(p_proprio + 5)
    aperture = tl.load(p_proprio + 6)
    zero = (x - x) + (y - y) + (z - z) + (wx - wx) + (wy - wy) + (wz - wz) + (aperture - aperture)
    finite = zero == 0.0  # the difference is not a number otherwise

    # Rodrigues' formula with sinc, which has no 0 / 0 at angle 0: c the image of axis x, u that of axis z.
    angle = tl.sqrt_rn(wx * wx + wy * wy + wz * wz)
    cosine, sine, half = tl.cos(angle), _sinc(angle), _sinc(angle * 0.5)
    versine = 0.5 * half * half
    cx, cy, cz = cosine + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy
    ux, uy, uz = sine * wy + versine * wx * wz, versine * wy * wz - sine * wx, cosine + versine * wz * wz

    scale = height.to(tl.float32) / 64.0
    sigma, sigma_finger = SIGMA_PX * scale, SIGMA_FINGER_PX * scale
    hx, hy, hz = x + FINGER_M * ux, y + FINGER_M * uy, z + FINGER_M * uz
    b_tool = _stroke(
        p_projection, hx, hy, hz, x + TOOL_M * ux, y + TOOL_M * uy, z + TOOL_M * uz, sigma, b_column, b_row
    )
    b_hand = _stroke(
        p_projection, hx - HAND_HALF_M * cx, hy - HAND_HALF_M * cy, hz - HAND_HALF_M * cz, hx + HAND_HALF_M * cx,
        hy + HAND_HALF_M * cy, hz + HAND_HALF_M * cz, sigma, b_column, b_row,
    )  # fmt: skip
    reach = TIP_CLOSED_M + TIP_OPENING_M * aperture
    b_finger = _stroke(
        p_projection, x + reach * cx, y + reach * cy, z + reach * cz, hx + reach * cx, hy + reach * cy, hz + reach * cz,
        sigma_finger, b_column, b_row,
    )  # fmt: skip
    b_other = _stroke(
        p_projection, x - reach * cx, y - reach * cy, z - reach * cz, hx - reach * cx, hy - reach * cy, hz - reach * cz,
        sigma_finger, b_column, b_row,
    )  # fmt: skip
    nearness = 1.0 - tl.minimum(tl.maximum(z / FADE_HEIGHT_M, 0.0), 1.0)
    b_foot = _stroke(p_projection, x, y, 0.0, x, y, 0.0, sigma, b_column, b_row) * (0.25 + 0.75 * nearness)

    p_out += i_b * CHANNELS * pixels + o_p
    m_p = o_p < pixels
    tl.store(p_out, tl.where(finite, b_tool, 0.0), mask=m_p)
    tl.store(p_out + pixels, tl.where(finite, tl.maximum(b_finger, b_other), 0.0), mask=m_p)
    tl.store(p_out + 2 * pixels, tl.where(finite, b_hand, 0.0), mask=m_p)
    tl.store(p_out + 3 * pixels, tl.where(finite, b_foot, 0.0), mask=m_p)


@face
def action_map(
    proprio: Tensor,  # [B, 7] float32
    projection: Tensor,  # [3, 4] float32
    height: int,
    width: int,
) -> Tensor:  # [B, 4, H, W] float32
    """A program per pose and 512 pixels, of all four channels."""
    out = torch.empty(len(proprio), CHANNELS.value, height, width, device=proprio.device)
    grid = (len(proprio) * triton.cdiv(height * width, BLOCK),)
    if out.numel():
        _action_map[grid](proprio.contiguous(), projection.contiguous(), out, height, width, BLOCK=BLOCK)
    return out
