"""Op `action_map`: end-effector pose -> camera -> strokes on a black image, the simulator's condition."""

import math

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.constants import constant

CHANNELS = 4
ARM_CHANNELS = (0, 2)  # tool and hand
SIGMA_PX = 1.5  # of tool, hand and foot point, at H = 64; every sigma scales with H / 64
SIGMA_FINGER_PX = 1.0
STROKE_FLOOR = math.exp(-8.0)  # a stroke ends at 4 sigma
TIP_CLOSED_M = 0.012  # from the grasp point to either tip
TIP_OPENING_M = 0.033  # added where the gripper is fully open
FINGER_M = 0.05  # from a tip up to the hand
HAND_HALF_M = 0.05  # half the width of the hand
TOOL_M = 0.4  # from the grasp point up to where the arm is no longer drawn
FADE_HEIGHT_M = 0.25  # where the foot point is at its faintest
NEAR_M = 0.05  # strokes are cut where they come nearer to the camera than this
SIZE_MIN_PX = 8


def action_map_reference(
    proprio: Tensor,  # [B, 7] float32: position xyz (m), axis-angle (rad), aperture in [0 closed, 1 open]
    projection: Tensor,  # [3, 4] float32: world point (m) -> homogeneous pixel
    height: int,
    width: int,
) -> Tensor:  # [B, 4, H, W] float32 in [0, 1]
    """The meaning of `action_map`, in plain PyTorch."""
    position, aperture = proprio[:, :3], proprio[:, 6:]
    closing, up = _rotated_axes(proprio[:, 3:6])
    reach = (TIP_CLOSED_M + TIP_OPENING_M * aperture) * closing
    foot = position * constant((1.0, 1.0, 0.0), position)
    hand, half = position + FINGER_M * up, HAND_HALF_M * closing

    def stroke(begin: Tensor, end: Tensor, sigma_px: float) -> Tensor:  # [B, 3] m, [B, 3] m -> [B, H, W]
        return _stroke(begin, end, projection, sigma_px * height / 64.0, height, width)

    fingers = [stroke(position + tip, position + tip + FINGER_M * up, SIGMA_FINGER_PX) for tip in (reach, -reach)]
    nearness = 1.0 - (position[:, 2] / FADE_HEIGHT_M).clamp(0.0, 1.0)
    shadow = stroke(foot, foot, SIGMA_PX) * (0.25 + 0.75 * nearness)[:, None, None]
    tool = stroke(hand, position + TOOL_M * up, SIGMA_PX)
    strokes = torch.stack([tool, torch.maximum(*fingers), stroke(hand - half, hand + half, SIGMA_PX), shadow], dim=1)
    finite = proprio.isfinite().all(dim=1)
    return torch.where(finite[:, None, None, None], strokes, 0.0)


def _rotated_axes(
    axis_angle: Tensor,  # [B, 3] rad
) -> tuple[Tensor, Tensor]:  # the images of x and z: [B, 3], unit
    # Rodrigues' formula with sinc, which has no 0 / 0 at angle 0.
    wx, wy, wz = axis_angle.unbind(dim=1)
    angle = axis_angle.square().sum(dim=1).sqrt()
    cosine, sine = angle.cos(), torch.sinc(angle / math.pi)
    versine = 0.5 * torch.sinc(angle / (2.0 * math.pi)).square()
    x = torch.stack([cosine + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy], dim=1)
    z = torch.stack([sine * wy + versine * wx * wz, versine * wy * wz - sine * wx, cosine + versine * wz * wz], dim=1)
    return x, z


def _stroke(
    begin: Tensor,  # [B, 3] m
    end: Tensor,  # [B, 3] m
    projection: Tensor,  # [3, 4]
    sigma_px: float,
    height: int,
    width: int,
) -> Tensor:  # [B, H, W]
    begin, end = (point @ projection[:, :3].T + projection[:, 3] for point in (begin, end))
    drawn = torch.maximum(begin[:, 2], end[:, 2]) > NEAR_M
    begin, end = _cut(begin, end), _cut(end, begin)
    ax, ay = (begin[:, :2] / begin[:, 2:])[:, :, None, None].unbind(1)
    bx, by = (end[:, :2] / end[:, 2:])[:, :, None, None].unbind(1)
    columns = torch.arange(width, device=begin.device) + 0.5 - ax  # [B, 1, W], from the beginning
    rows = torch.arange(height, device=begin.device)[:, None] + 0.5 - ay
    dx, dy = bx - ax, by - ay
    along = ((columns * dx + rows * dy) / (dx * dx + dy * dy).clamp(min=1e-12)).clamp(0.0, 1.0)
    squared_px = (columns - along * dx).square() + (rows - along * dy).square()
    value = torch.exp(squared_px / (-2.0 * sigma_px**2))
    return torch.where((value >= STROKE_FLOOR) & drawn[:, None, None], value, 0.0)


def _cut(point: Tensor, other: Tensor) -> Tensor:  # [B, 3] homogeneous pixels: `point`, or where the line leaves NEAR_M
    step = (NEAR_M - point[:, 2]) / (other[:, 2] - point[:, 2])
    return torch.where((point[:, 2] < NEAR_M)[:, None], point + step[:, None] * (other - point), point)


def action_map(
    proprio: Tensor,  # [B, 7] float32: position xyz (m), axis-angle (rad), aperture in [0 closed, 1 open]
    projection: Tensor,  # [3, 4] float32: world point (m) -> homogeneous pixel; intrinsics @ extrinsics[:3]
    height: int,  # pixels, >= 8
    width: int,  # pixels, >= 8
) -> Tensor:  # [B, 4, H, W] float32 in [0, 1]
    """Draw the gripper of each pose as Gaussian strokes, as the camera would see them.

        stroke(p, q) = exp(-d^2 / (2 sigma^2)), d the distance (px) to the segment project(p) .. project(q),
                       0 where below exp(-8)

        with x', z' the images of the axes x and z under the rotation, and p the position (grasp point):
        channel 0, tool     stroke(p + 0.05 z', p + 0.4 z')                           sigma = 1.5 H / 64
        channel 1, fingers  max over +- of stroke(tip, tip + 0.05 z')                 sigma = 1.0 H / 64
                            tip = p +- (0.012 + 0.033 aperture) x'
        channel 2, hand     stroke(p + 0.05 z' - 0.05 x', p + 0.05 z' + 0.05 x')      sigma = 1.5 H / 64
        channel 3, foot     stroke(f, f) * (0.25 + 0.75 (1 - clip(z / 0.25)))         sigma = 1.5 H / 64
                            f = (x, y, 0)

    Pixel centres lie at integer + 0.5. What is less than 0.05 m in front of the camera is cut off, and a pose with a
    non-finite number draws nothing at all, in no channel, and leaves the others alone. Computed in float32. No
    gradient. Source: World-Env (arXiv 2509.24948), action map.

    Raises ValueError if a shape, dtype or device is another one, an image side is under 8 pixels, or an input requires
    a gradient.
    """
    _check(proprio, projection, height, width)
    if ops.BACKEND == "reference":
        return action_map_reference(proprio, projection, height, width)
    return torch.ops.worldenv.action_map(proprio, projection, height, width)


def _check(proprio: Tensor, projection: Tensor, height: int, width: int) -> None:
    if proprio.ndim != 2 or proprio.shape[1] != 7:
        raise ValueError(f"proprio has shape {list(proprio.shape)}; it should be [B, 7]")
    if tuple(projection.shape) != (3, 4):
        raise ValueError(
            f"projection has shape {list(projection.shape)}; it should be [3, 4], intrinsics @ extrinsics[:3]"
        )
    for name, tensor in (("proprio", proprio), ("projection", projection)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; it should be torch.float32: pass {name}.float()")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient, which action_map does not have: pass {name}.detach()")
    if projection.device != proprio.device:
        raise ValueError(f"projection is on {projection.device}; it should be on {proprio.device}, as proprio is")
    if height < SIZE_MIN_PX or width < SIZE_MIN_PX:
        raise ValueError(f"height and width are {height} and {width}; both should be at least {SIZE_MIN_PX} pixels")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::action_map", "CompositeExplicitAutograd")(action_map_reference)


@torch.library.register_fake("worldenv::action_map")
def _(proprio: Tensor, projection: Tensor, height: int, width: int) -> Tensor:
    return proprio.new_empty(proprio.shape[0], CHANNELS, height, width)
