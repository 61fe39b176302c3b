"""Op `action_map`: end-effector pose -> camera -> markers on a black image, the simulator's condition."""

import math

import torch
from torch import Tensor

from worldenv import ops

SIGMA_POINT_PX = 1.5  # at H = 64; every sigma scales with H / 64
SIGMA_TIP_PX = 1.0
BLOB_FLOOR = math.exp(-8.0)  # a blob ends at 4 sigma
TIP_CLOSED_M = 0.012  # from the grasp point to either tip
TIP_OPENING_M = 0.033  # added where the gripper is fully open
FADE_HEIGHT_M = 0.25  # where the foot point is at its faintest
SIZE_MIN_PX = 8


def action_map_reference(
    proprio: Tensor,  # [B, 7] float32: position xyz (m), axis-angle (rad), aperture in [0 closed, 1 open]
    projection: Tensor,  # [3, 4] float32: world point (m) -> homogeneous pixel
    height: int,
    width: int,
) -> Tensor:  # [B, 3, H, W] float32 in [0, 1]
    """The meaning of `action_map`, in plain PyTorch."""
    position, axis_angle, aperture = proprio[:, :3], proprio[:, 3:6], proprio[:, 6:]
    closing = _rotate_x_axis(axis_angle)
    reach = (TIP_CLOSED_M + TIP_OPENING_M * aperture) * closing
    foot = position * position.new_tensor([1.0, 1.0, 0.0])
    scale = height / 64.0

    def blob(point: Tensor, sigma_px: float) -> Tensor:  # [B, 3] m -> [B, H, W]
        return _blob(point, projection, sigma_px * scale, height, width)

    tips = torch.maximum(blob(position + reach, SIGMA_TIP_PX), blob(position - reach, SIGMA_TIP_PX))
    nearness = 1.0 - (position[:, 2] / FADE_HEIGHT_M).clamp(0.0, 1.0)
    shadow = blob(foot, SIGMA_POINT_PX) * (0.25 + 0.75 * nearness)[:, None, None]
    markers = torch.stack([blob(position, SIGMA_POINT_PX), tips, shadow], dim=1)
    finite = proprio.isfinite().all(dim=1)
    return torch.where(finite[:, None, None, None], markers, 0.0)


def _rotate_x_axis(
    axis_angle: Tensor,  # [B, 3] rad
) -> Tensor:  # [B, 3], unit
    # Rodrigues' formula with sinc, which has no 0 / 0 at angle 0.
    wx, wy, wz = axis_angle.unbind(dim=1)
    angle = axis_angle.square().sum(dim=1).sqrt()
    sine = torch.sinc(angle / math.pi)
    versine = 0.5 * torch.sinc(angle / (2.0 * math.pi)).square()
    return torch.stack(
        [angle.cos() + versine * wx * wx, sine * wz + versine * wx * wy, versine * wx * wz - sine * wy], dim=1
    )


def _blob(
    point: Tensor,  # [B, 3] m
    projection: Tensor,  # [3, 4]
    sigma_px: float,
    height: int,
    width: int,
) -> Tensor:  # [B, H, W]
    seen = point @ projection[:, :3].T + projection[:, 3]
    x, y = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    columns = torch.arange(width, device=point.device) + 0.5
    rows = torch.arange(height, device=point.device) + 0.5
    squared_px = (columns - x[:, None]).square()[:, None, :] + (rows - y[:, None]).square()[:, :, None]
    value = torch.exp(squared_px / (-2.0 * sigma_px**2))
    drawn = (value >= BLOB_FLOOR) & (seen[:, 2] > 0.0)[:, None, None]
    return torch.where(drawn, value, 0.0)


def action_map(
    proprio: Tensor,  # [B, 7] float32: position xyz (m), axis-angle (rad), aperture in [0 closed, 1 open]
    projection: Tensor,  # [3, 4] float32: world point (m) -> homogeneous pixel; intrinsics @ extrinsics[:3]
    height: int,  # pixels, >= 8
    width: int,  # pixels, >= 8
) -> Tensor:  # [B, 3, H, W] float32 in [0, 1]
    """Draw each pose as Gaussian markers, as the camera would see them.

        blob(p) = exp(-|pixel - project(p)|^2 / (2 sigma^2)), 0 where below exp(-8)

        channel 0: blob(position)                                        sigma = 1.5 H / 64
        channel 1: max over +- of blob(position +- (0.012 + 0.033 aperture) R(axis_angle) x)
                                                                         sigma = 1.0 H / 64
        channel 2: blob(x, y, 0) * (0.25 + 0.75 (1 - clip(z / 0.25)))    sigma = 1.5 H / 64

    Pixel centres lie at integer + 0.5. A point behind the camera or off the image draws nothing, and a pose with a
    non-finite number draws nothing at all, in no channel, and leaves the others alone. Computed in float32. Writes
    12 B H W bytes and computes a 4-sigma window per blob, so it is bound by bandwidth. No gradient. Source: METHOD.md,
    "action map" (World-Env, section "World simulator").

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
    return proprio.new_empty(proprio.shape[0], 3, height, width)
