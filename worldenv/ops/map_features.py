"""Op `map_features`: the action maps of an episode's poses, drawn and seen by a convolution of 2 x 2 in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.action_map import CHANNELS, POSE, SIZE_MIN_PX, action_map_reference, check_drawing


def map_features_reference(
    poses: Tensor,  # [B, N, P] float32
    camera: Tensor,  # [B, V, 3, 4] float32
    weight: Tensor,  # [D, N * 4, 2, 2] float32
    gripper: Sequence[float],  # the numbers of a `Gripper`
    height: int,
    width: int,
) -> Tensor:  # [B, V, H / 2, W / 2, D] float32
    """The meaning of `map_features`, in plain PyTorch; it has a gradient with respect to `weight`."""
    maps = action_map_reference(poses.flatten(0, 1), _of_every_pose(camera, poses), gripper, height, width)
    return _convolve(maps, weight, poses.shape[0])


def _draw_then_convolve(
    poses: Tensor, camera: Tensor, weight: Tensor, gripper: Sequence[float], height: int, width: int
) -> Tensor:
    # The same with the face of `action_map` that the device has.
    maps = torch.ops.worldenv.action_map(poses.flatten(0, 1), _of_every_pose(camera, poses), gripper, height, width)
    return _convolve(maps, weight, poses.shape[0])


def _of_every_pose(camera: Tensor, poses: Tensor) -> Tensor:  # [B, V, 3, 4], [B, N, P] -> [B * N, V, 3, 4]
    return camera[:, None].expand(-1, poses.shape[1], -1, -1, -1).flatten(0, 1)


def _convolve(maps: Tensor, weight: Tensor, batch: int) -> Tensor:  # [B * N, V, 4, H, W] -> [B, V, H / 2, W / 2, D]
    views, (height, width), channels = maps.shape[1], maps.shape[3:], weight.shape[1]
    maps = maps.view(batch, channels // CHANNELS, views, CHANNELS, height, width).transpose(1, 2)
    features = F.conv2d(maps.reshape(batch * views, channels, height, width), weight, stride=2)
    return features.permute(0, 2, 3, 1).contiguous().unflatten(0, (batch, views))


def map_features(
    poses: Tensor,  # [B, N, P] float32, each as `action_map` takes it
    camera: Tensor,  # [B, V, 3, 4] float32: world point (m) -> homogeneous pixel; intrinsics @ extrinsics[:3]
    weight: Tensor,  # [D, N * 4, 2, 2] float32; its second dimension: channels of the first pose, of the second ...
    gripper: Sequence[float],  # the numbers of a `Gripper`, m
    height: int,  # pixels, even, >= 8
    width: int,  # pixels, even, >= 8
) -> Tensor:  # [B, V, H / 2, W / 2, D] float32
    """What a convolution of kernel 2 and stride 2 sees on the action maps of N poses, in each of V views.

        maps = action_map(poses), N * 4 channels
        features[b, v, y, x] = sum over channels c and the pixels (i, j) of a patch of
                               maps[b, v, c, 2 y + i, 2 x + j] * weight[:, c, i, j]

    Some 94 % of the maps are black, and what is black takes no part: on a CPU the maps are never held, and the cost is
    that of drawing the strokes and of writing the features once. Computed in float32. An episode's features do not
    depend on the others. Where `weight` wants a gradient, the maps are drawn and torch convolves them; poses and
    camera have none.

    Raises ValueError if a shape, dtype or device is another one, an image side is odd or under 8 pixels, or poses or
    camera require a gradient.
    """
    _check(poses, camera, weight, gripper, height, width)
    if ops.BACKEND == "reference":
        return map_features_reference(poses, camera, weight, gripper, height, width)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _draw_then_convolve(poses, camera, weight, gripper, height, width)
    return torch.ops.worldenv.map_features(poses, camera, weight, gripper, height, width)


def _check(poses: Tensor, camera: Tensor, weight: Tensor, gripper: Sequence[float], height: int, width: int) -> None:
    if poses.ndim != 3 or not poses.shape[1] or poses.shape[2] < POSE:
        raise ValueError(f"poses has shape {list(poses.shape)}; it should be [B, N, P] with P at least {POSE}")
    if weight.ndim != 4:
        raise ValueError(f"weight has shape {list(weight.shape)}; it should be [D, N * 4, 2, 2]")
    check_drawing("map_features", poses, camera, gripper)
    shape = (len(weight), poses.shape[1] * CHANNELS, 2, 2)
    ops.check_tensors({"poses": (poses, poses.shape), "weight": (weight, shape)})
    if min(height, width) < SIZE_MIN_PX or height % 2 or width % 2:
        raise ValueError(
            f"height and width are {height} and {width}; both should be even and at least {SIZE_MIN_PX} pixels"
        )


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::map_features", "CompositeExplicitAutograd")(_draw_then_convolve)


@torch.library.register_fake("worldenv::map_features")
def _(poses: Tensor, camera: Tensor, weight: Tensor, gripper: Sequence[float], height: int, width: int) -> Tensor:
    return poses.new_empty(poses.shape[0], camera.shape[1], height // 2, width // 2, weight.shape[0])
