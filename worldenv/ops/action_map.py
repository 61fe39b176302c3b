"""Op `action_map`: end-effector pose -> cameras -> strokes on black images, the condition of a world model."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.constants import constant

CHANNELS = 4
ARM_CHANNELS = (0, 2)  # tool and hand
SIGMA_PX = 1.5  # of tool, hand and foot point, at H = 64; every sigma scales with H / 64
SIGMA_FINGER_PX = 1.0
STROKE_FLOOR = math.exp(-8.0)  # a stroke ends at 4 sigma
POSE = 7  # numbers of a pose that are drawn
FADE_HEIGHT_M = 0.25  # where the foot point is at its faintest
NEAR_M = 0.05  # strokes are cut where they come nearer to the camera than this
SIZE_MIN_PX = 8


class Gripper(NamedTuple):
    """What is drawn of a robot: the lengths of its hand."""

    tip_closed_m: float = 0.012  # from the grasp point to either tip
    tip_opening_m: float = 0.033  # added where the gripper is fully open
    finger_m: float = 0.05  # from a tip up to the hand
    hand_half_m: float = 0.05  # half the width of the hand
    tool_m: float = 0.4  # from the grasp point up to where the arm is no longer drawn


def action_map_reference(
    poses: Tensor,  # [B, P] float32
    camera: Tensor,  # [B, V, 3, 4] float32
    gripper: Sequence[float],  # the numbers of a `Gripper`
    height: int,
    width: int,
) -> Tensor:  # [B, V, 4, H, W] float32 in [0, 1]
    """The meaning of `action_map`, in plain PyTorch."""
    gripper = Gripper(*gripper)
    position, opening = poses[:, :3], poses[:, 6:POSE]
    closing, up = rotated_axes(poses[:, 3:6])
    reach = (gripper.tip_closed_m + gripper.tip_opening_m * opening) * closing
    foot = position * constant((1.0, 1.0, 0.0), position)
    finger, half = gripper.finger_m * up, gripper.hand_half_m * closing
    hand = position + finger

    def stroke(begin: Tensor, end: Tensor, sigma_px: float) -> Tensor:  # [B, 3] m, [B, 3] m -> [B, V, H, W]
        return _stroke(begin, end, camera, sigma_px * height / 64.0, height, width)

    fingers = [stroke(position + tip, position + tip + finger, SIGMA_FINGER_PX) for tip in (reach, -reach)]
    nearness = 1.0 - (position[:, 2] / FADE_HEIGHT_M).clamp(0.0, 1.0)
    shadow = stroke(foot, foot, SIGMA_PX) * (0.25 + 0.75 * nearness)[:, None, None, None]
    tool = stroke(hand, position + gripper.tool_m * up, SIGMA_PX)
    strokes = torch.stack([tool, torch.maximum(*fingers), stroke(hand - half, hand + half, SIGMA_PX), shadow], dim=2)
    finite = poses[:, :POSE].isfinite().all(dim=1)
    return torch.where(finite[:, None, None, None, None], strokes, 0.0)


def rotated_axes(
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
    camera: Tensor,  # [B, V, 3, 4]
    sigma_px: float,
    height: int,
    width: int,
) -> Tensor:  # [B, V, H, W]
    begin, end = ((camera[..., :3] @ point[:, None, :, None])[..., 0] + camera[..., 3] for point in (begin, end))
    drawn = torch.maximum(begin[..., 2], end[..., 2]) > NEAR_M
    begin, end = _cut(begin, end), _cut(end, begin)
    ax, ay = (begin[..., :2] / begin[..., 2:])[..., None, None].unbind(2)
    bx, by = (end[..., :2] / end[..., 2:])[..., None, None].unbind(2)
    columns = torch.arange(width, dtype=begin.dtype, device=begin.device) + 0.5 - ax  # [B, V, 1, W], from the beginning
    rows = torch.arange(height, dtype=begin.dtype, device=begin.device)[:, None] + 0.5 - ay
    dx, dy = bx - ax, by - ay
    along = ((columns * dx + rows * dy) / (dx * dx + dy * dy).clamp(min=1e-12)).clamp(0.0, 1.0)
    squared_px = (columns - along * dx).square() + (rows - along * dy).square()
    value = torch.exp(squared_px / (-2.0 * sigma_px**2))
    return torch.where((value >= STROKE_FLOOR) & drawn[..., None, None], value, 0.0)


def _cut(point: Tensor, other: Tensor) -> Tensor:  # [B, V, 3] homogeneous pixels: `point`, or where it is at NEAR_M
    step = (NEAR_M - point[..., 2:]) / (other[..., 2:] - point[..., 2:])
    return torch.where(point[..., 2:] < NEAR_M, point + step * (other - point), point)


def action_map(
    poses: Tensor,  # [B, P] float32: position xyz (m), axis-angle (rad), opening in [0 closed, 1 open], others unread
    camera: Tensor,  # [B, V, 3, 4] float32: world point (m) -> homogeneous pixel; intrinsics @ extrinsics[:3]
    gripper: Sequence[float],  # the numbers of a `Gripper`, m
    height: int,  # pixels, >= 8
    width: int,  # pixels, >= 8
) -> Tensor:  # [B, V, 4, H, W] float32 in [0, 1]
    """Draw the gripper of each pose as Gaussian strokes, as each of its V cameras would see them.

        stroke(p, q) = exp(-d^2 / (2 sigma^2)), d the distance (px) to the segment project(p) .. project(q),
                       0 where below exp(-8)

        with x', z' the images of the axes x and z under the rotation, p the position (grasp point),
        hand = p + finger z':
        channel 0, tool     stroke(hand, p + tool z')                                 sigma = 1.5 H / 64
        channel 1, fingers  max over +- of stroke(tip, tip + finger z')               sigma = 1.0 H / 64
                            tip = p +- (tip_closed + tip_opening opening) x'
        channel 2, hand     stroke(hand - hand_half x', hand + hand_half x')          sigma = 1.5 H / 64
        channel 3, foot     stroke(f, f) * (0.25 + 0.75 (1 - clip(z / 0.25)))         sigma = 1.5 H / 64
                            f = (x, y, 0)

    Pixel centres lie at integer + 0.5. What is less than 0.05 m in front of the camera is cut off, and a pose with a
    non-finite number among its first seven draws nothing at all, in no channel, and leaves the others alone. Computed
    in float32. No gradient. Source: World-Env (arXiv 2509.24948), action map.

    Raises ValueError if a shape, dtype or device is another one, an image side is under 8 pixels, or an input requires
    a gradient.
    """
    if poses.ndim != 2 or poses.shape[1] < POSE:
        raise ValueError(f"poses has shape {list(poses.shape)}; it should be [B, P] with P at least {POSE}")
    check_drawing("action_map", poses, camera, gripper)
    if height < SIZE_MIN_PX or width < SIZE_MIN_PX:
        raise ValueError(f"height and width are {height} and {width}; both should be at least {SIZE_MIN_PX} pixels")
    if ops.BACKEND == "reference":
        return action_map_reference(poses, camera, gripper, height, width)
    return torch.ops.worldenv.action_map(poses, camera, gripper, height, width)


def check_drawing(op: str, poses: Tensor, camera: Tensor, gripper: Sequence[float]) -> None:
    """Raise ValueError unless `op` can draw these poses, whose shape is right, as these cameras see them."""
    if camera.ndim != 4 or camera.shape[0] != poses.shape[0] or not camera.shape[1] or camera.shape[2:] != (3, 4):
        raise ValueError(
            f"camera has shape {list(camera.shape)}; it should be [{poses.shape[0]}, V, 3, 4] with V at least 1, "
            "intrinsics @ extrinsics[:3] of every episode and view"
        )
    for name, tensor in (("poses", poses), ("camera", camera)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; it should be torch.float32: pass {name}.float()")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient, which {op} does not have: pass {name}.detach()")
    if camera.device != poses.device:
        raise ValueError(f"camera is on {camera.device}; it should be on {poses.device}, as poses is")
    if len(gripper) != len(Gripper._fields):
        raise ValueError(f"gripper is {gripper}; it should be a Gripper, {len(Gripper._fields)} lengths")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::action_map", "CompositeExplicitAutograd")(action_map_reference)


@torch.library.register_fake("worldenv::action_map")
def _(poses: Tensor, camera: Tensor, gripper: Sequence[float], height: int, width: int) -> Tensor:
    return poses.new_empty(poses.shape[0], camera.shape[1], CHANNELS, height, width)
