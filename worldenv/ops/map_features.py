"""Op `map_features`: the action maps of an episode's poses, drawn and seen by a convolution of 2 x 2 in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv import ops
from worldenv.ops.action_map import CHANNELS, SIZE_MIN_PX, action_map_reference


def map_features_reference(
    poses: Tensor,  # [B, N, 7] float32
    projection: Tensor,  # [3, 4] float32
    weight: Tensor,  # [D, N * 4, 2, 2] float32
    height: int,
    width: int,
) -> Tensor:  # [B, H / 2, W / 2, D] float32
    """The meaning of `map_features`, in plain PyTorch; it has a gradient with respect to `weight`."""
    return _convolve(action_map_reference(poses.flatten(0, 1), projection, height, width), weight, len(poses))


def _draw_then_convolve(poses: Tensor, projection: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    # The same with the face of `action_map` that the device has.
    return _convolve(torch.ops.worldenv.action_map(poses.flatten(0, 1), projection, height, width), weight, len(poses))


def _convolve(maps: Tensor, weight: Tensor, batch: int) -> Tensor:  # [B * N, 4, H, W] -> [B, H / 2, W / 2, D]
    maps = maps.view(batch, weight.shape[1], *maps.shape[2:])
    return F.conv2d(maps, weight, stride=2).permute(0, 2, 3, 1).contiguous()


def map_features(
    poses: Tensor,  # [B, N, 7] float32, each as `action_map` takes it
    projection: Tensor,  # [3, 4] float32: world point (m) -> homogeneous pixel; intrinsics @ extrinsics[:3]
    weight: Tensor,  # [D, N * 4, 2, 2] float32; its second dimension: channels of the first pose, of the second ...
    height: int,  # pixels, even, >= 8
    width: int,  # pixels, even, >= 8
) -> Tensor:  # [B, H / 2, W / 2, D] float32
    """What a convolution of kernel 2 and stride 2 sees on the action maps of N poses.

        maps = action_map(poses), N * 4 channels
        features[b, y, x] = sum over channels c and the pixels (i, j) of a patch of
                            maps[b, c, 2 y + i, 2 x + j] * weight[:, c, i, j]

    Some 94 % of the maps are black, and what is black takes no part: on a CPU the maps are never held, and the cost is
    that of drawing the strokes and of writing the features once. Computed in float32. An episode's features do not
    depend on the others. Where `weight` wants a gradient, the maps are drawn and torch convolves them; poses and
    projection have none.

    Raises ValueError if a shape, dtype or device is another one, an image side is odd or under 8 pixels, or poses or
    projection require a gradient.
    """
    _check(poses, projection, weight, height, width)
    if ops.BACKEND == "reference":
        return map_features_reference(poses, projection, weight, height, width)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _draw_then_convolve(poses, projection, weight, height, width)
    return torch.ops.worldenv.map_features(poses, projection, weight, height, width)


def _check(poses: Tensor, projection: Tensor, weight: Tensor, height: int, width: int) -> None:
    for name, tensor, rank in (("poses", poses, 3), ("weight", weight, 4)):
        if tensor.ndim != rank or 0 in tensor.shape[1:]:
            shape = "[B, N, 7]" if name == "poses" else "[D, N * 4, 2, 2]"
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it should be {shape}")
    b, n = poses.shape[:2]
    ops.check_tensors(
        {
            "poses": (poses, (b, n, 7)),
            "projection": (projection, (3, 4)),
            "weight": (weight, (len(weight), n * CHANNELS, 2, 2)),
        }
    )
    for name, tensor in (("poses", poses), ("projection", projection)):
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient, which map_features does not have: pass {name}.detach()")
    if min(height, width) < SIZE_MIN_PX or height % 2 or width % 2:
        raise ValueError(
            f"height and width are {height} and {width}; both should be even and at least {SIZE_MIN_PX} pixels"
        )


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::map_features", "CompositeExplicitAutograd")(_draw_then_convolve)


@torch.library.register_fake("worldenv::map_features")
def _(poses: Tensor, projection: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    return poses.new_empty(poses.shape[0], height // 2, width // 2, weight.shape[0])
