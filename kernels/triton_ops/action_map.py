"""Triton face of `action_map`: every program projects its pose anew, which costs less than to store it.

A point is a tuple of its coordinates.
"""

from collections.abc import Sequence

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
FADE_HEIGHT_M = tl.constexpr(0.25)
NEAR_M = tl.constexpr(0.05)
BLOCK = 512  # pixels of a program, of all channels


@triton.jit
def _along(point, length, axis):
    return point[0] + length * axis[0], point[1] + length * axis[1], point[2] + length * axis[2]


@triton.jit
def _row(p_row, point):
    product = tl.load(p_row) * point[0] + tl.load(p_row + 1) * point[1] + tl.load(p_row + 2) * point[2]
    return product + tl.load(p_row + 3)


@triton.jit
def _projected(p_camera, point):
    return _row(p_camera, point), _row(p_camera + 4, point), _row(p_camera + 8, point)


@triton.jit
def _cut(point, other):  # and divided: the pixel of the point, or of where the line to the other one leaves NEAR_M
    u, v, w = point
    step = tl.where(w < NEAR_M, (NEAR_M - w) / (other[2] - w), 0.0)
    w = tl.where(w < NEAR_M, w + step * (other[2] - w), w)
    return (u + step * (other[0] - u)) / w, (v + step * (other[1] - v)) / w


@triton.jit
def _stroke(p_camera, begin, end, sigma_px, b_column, b_row):
    a, b = _projected(p_camera, begin), _projected(p_camera, end)
    ax, ay = _cut(a, b)
    bx, by = _cut(b, a)
    dx, dy = bx - ax, by - ay
    b_column, b_row = b_column - ax, b_row - ay
    b_along = (b_column * dx + b_row * dy) / tl.maximum(dx * dx + dy * dy, 1e-12)
    b_along = tl.minimum(tl.maximum(b_along, 0.0), 1.0)
    b_column, b_row = b_column - b_along * dx, b_row - b_along * dy
    b_value = tl.exp((b_column * b_column + b_row * b_row) / (-2.0 * sigma_px * sigma_px))
    return tl.where(tl.maximum(a[2], b[2]) > NEAR_M, tl.where(b_value >= STROKE_FLOOR, b_value, 0.0), 0.0)


@triton.jit
def _sinc(x):  # sin(x) / x
    return tl.where(x == 0.0, 1.0, tl.sin(x) / tl.where(x == 0.0, 1.0, x))


@triton.jit
def _rotated_axes(wx, wy, wz):  # the images of x and z, by Rodrigues' formula with sinc: it has no 0 / 0 at angle 0
    angle = tl.sqrt_rn(wx * wx + wy * wy + wz * wz)
    cosine, sine, half = tl.cos(angle), _sinc(angle), _sinc(angle * 0.5)
    versine = 0.5 * half * half
    x = cosine + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy
    z = sine * wy + versine * wx * wz, versine * wy * wz - sine * wx, cosine + versine * wz * wz
    return x, z


@triton.jit
def _action_map(
    p_poses, p_camera, p_out, tip_closed, tip_opening, finger, hand_half, tool, V, P, height, width, BLOCK: tl.constexpr
):
    pixels = height * width
    blocks = tl.cdiv(pixels, BLOCK)
    i_bv, i_p = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks  # an episode and view; a block
    o_p = i_p * BLOCK + tl.arange(0, BLOCK)
    b_column, b_row = (o_p % width).to(tl.float32) + 0.5, (o_p // width).to(tl.float32) + 0.5
    p_poses += i_bv // V * P
    p_camera += i_bv * 12
    x, y, z = tl.load(p_poses), tl.load(p_poses + 1), tl.load(p_poses + 2)
    wx, wy, wz = tl.load(p_poses + 3), tl.load(p_poses + 4), tl.load(p_poses + 5)
    opening = tl.load(p_poses + 6)
    zero = (x - x) + (y - y) + (z - z) + (wx - wx) + (wy - wy) + (wz - wz) + (opening - opening)
    finite = zero == 0.0  # the difference is not a number otherwise

    closing, up = _rotated_axes(wx, wy, wz)
    position, foot = (x, y, z), (x, y, 0.0)
    hand = _along(position, finger, up)
    scale = height.to(tl.float32) / 64.0
    sigma, sigma_finger = SIGMA_PX * scale, SIGMA_FINGER_PX * scale
    b_tool = _stroke(p_camera, hand, _along(position, tool, up), sigma, b_column, b_row)
    begin, end = _along(hand, -hand_half, closing), _along(hand, hand_half, closing)
    b_hand = _stroke(p_camera, begin, end, sigma, b_column, b_row)
    reach = tip_closed + tip_opening * opening
    begin, end = _along(position, reach, closing), _along(hand, reach, closing)
    b_finger = _stroke(p_camera, begin, end, sigma_finger, b_column, b_row)
    begin, end = _along(position, -reach, closing), _along(hand, -reach, closing)
    b_other = _stroke(p_camera, begin, end, sigma_finger, b_column, b_row)
    nearness = 1.0 - tl.minimum(tl.maximum(z / FADE_HEIGHT_M, 0.0), 1.0)
    b_foot = _stroke(p_camera, foot, foot, sigma, b_column, b_row) * (0.25 + 0.75 * nearness)

    p_out += i_bv * CHANNELS * pixels + o_p
    m_p = o_p < pixels
    tl.store(p_out, tl.where(finite, b_tool, 0.0), mask=m_p)
    tl.store(p_out + pixels, tl.where(finite, tl.maximum(b_finger, b_other), 0.0), mask=m_p)
    tl.store(p_out + 2 * pixels, tl.where(finite, b_hand, 0.0), mask=m_p)
    tl.store(p_out + 3 * pixels, tl.where(finite, b_foot, 0.0), mask=m_p)


@face
def action_map(
    poses: Tensor,  # [B, P] float32
    camera: Tensor,  # [B, V, 3, 4] float32
    gripper: Sequence[float],  # m
    height: int,
    width: int,
) -> Tensor:  # [B, V, 4, H, W] float32
    """A program per pose, view and 512 pixels, of all four channels."""
    (b, p), v = poses.shape, camera.shape[1]
    out = torch.empty(b, v, CHANNELS.value, height, width, device=poses.device)
    grid = (b * v * triton.cdiv(height * width, BLOCK),)
    if out.numel():
        _action_map[grid](
            poses.contiguous(), camera.contiguous(), out, *map(float, gripper), v, p, height, width, BLOCK=BLOCK
        )
    return out
