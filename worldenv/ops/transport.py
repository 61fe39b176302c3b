"""Op `transport`: the known pictures of a chunk, and what things do that the gripper takes along, without a network."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.patchify import PATCH, patchify_reference, unit

POSE = 3  # numbers of a pose that are read


def moves(chunk: int) -> int:
    """How many pairs of poses a chunk has: from the present one or a later one to one later still."""
    return chunk * (chunk + 1) // 2


def transport_reference(
    frames: Tensor,  # [B, M, V, H, W, 3]
    poses: Tensor,  # [B, K + 1, P]
    camera: Tensor,  # [B, V, 3, 4]
) -> Tensor:  # [B, V, H / 2, W / 2, M + K (K + 1) / 2, 12]
    """The meaning of `transport`, in plain PyTorch; from float32 frames it has a gradient."""
    (b, _, v, height, width, _), k = frames.shape, poses.shape[1] - 1
    frames = frames.transpose(1, 2).flatten(0, 1)  # an episode and view from here on
    homogeneous = poses[:, None, :, :POSE] @ camera[..., :3].mT + camera[..., None, :, 3]
    homogeneous = homogeneous.flatten(0, 1)
    depth = homogeneous[..., 2:].clamp(min=1e-3)
    tip = homogeneous[..., :2] / depth  # [B * V, K + 1, 2] px
    i, j = torch.triu_indices(k + 1, k + 1, 1, device=frames.device)
    scale = depth[:, j] / depth[:, i]
    shift = tip[:, i] - tip[:, j] * scale
    across = _resampling(shift[..., 0], scale[..., 0], width)
    down = _resampling(shift[..., 1], scale[..., 0], height)
    moved = torch.einsum("bpyh,bphxc->bpyxc", down, torch.einsum("bhwc,bpxw->bphxc", unit(frames[:, -1]), across))
    if frames.dtype == torch.uint8:
        moved = (moved.nan_to_num().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return patchify_reference(torch.cat([frames, moved], dim=1)).unflatten(0, (b, v))


def _resampling(
    shift: Tensor,  # [B, P] px
    scale: Tensor,  # [B, P]
    size: int,
) -> Tensor:  # [B, P, size, size], rows of weights: out[x] = sum over x' of weight[x, x'] in[x']
    centre = (
        shift[..., None] + scale[..., None] * (torch.arange(size, dtype=shift.dtype, device=shift.device) + 0.5) - 0.5
    )
    first = centre.floor()
    t = centre - first
    taps = [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
    place = torch.stack([first + n for n in (-1, 0, 1, 2)], dim=-1).nan_to_num().clamp(0, size - 1).long()
    weight = shift.new_zeros(*shift.shape, size, size)
    return weight.scatter_add_(-1, place, torch.stack(taps, dim=-1) / 2)


def transport(
    frames: Tensor,  # [B, M, V, H, W, 3] uint8 in [0, 255] or float32 in [-1, 1], the present one last; H and W even
    poses: Tensor,  # [B, K + 1, P] float32, the present pose first: position xyz (m), others unread
    camera: Tensor,  # [B, V, 3, 4] float32, world point (m) -> homogeneous pixel
) -> Tensor:  # [B, V, H / 2, W / 2, M + K (K + 1) / 2, 12] as frames: their patches, then (0, 1), .. (K - 1, K)
    """The frames as they are, and the last one moved as the projected fingertips move from pose i to any later pose j.

        source(x) = tip_i + (x - tip_j) * depth_j / depth_i, tip and depth as the view's camera sees the position

    Exact for a thing at the fingertips' depth that the gripper takes along from pose i to pose j and then leaves: one
    that it held before (i = 0), takes, pushes from then on, or lets go within the chunk. The composer chooses where to
    believe which. Catmull-Rom resampling, which keeps small things sharp through many chunks; beyond the frame the
    border is repeated. From uint8 frames the result is rounded to pixels; where a pose is not finite, they are grey.
    The poses have no gradient; where one is wanted for the frames, the reference is what runs.

    Raises ValueError if a shape, dtype or device is another one.
    """
    _check(frames, poses, camera)
    if ops.BACKEND == "reference" or (torch.is_grad_enabled() and frames.requires_grad):
        return transport_reference(frames, poses, camera)
    return torch.ops.worldenv.transport(frames, poses, camera)


def _check(frames: Tensor, poses: Tensor, camera: Tensor) -> None:
    shape = frames.shape
    if frames.ndim != 6 or 0 in shape[1:3] or shape[3] % 2 or shape[4] % 2 or shape[5] != 3:
        raise ValueError(f"frames is {list(shape)}; it should be [B, M, V, H, W, 3] with H and W even, M and V not 0")
    if frames.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"frames is {frames.dtype}; it should be torch.uint8 or torch.float32")
    b, v = shape[0], shape[2]
    if poses.ndim != 3 or poses.shape[0] != b or poses.shape[2] < POSE or poses.dtype != torch.float32:
        raise ValueError(
            f"poses is {poses.dtype} {list(poses.shape)}; it should be float32 [{b}, K + 1, P] with P at least {POSE}"
        )
    if camera.shape != (b, v, 3, 4) or camera.dtype != torch.float32:
        raise ValueError(f"camera is {camera.dtype} {list(camera.shape)}; it should be float32 [{b}, {v}, 3, 4]")
    if not frames.device == poses.device == camera.device:
        raise ValueError(f"frames is on {frames.device}, poses on {poses.device}, camera on {camera.device}")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::transport", "CompositeExplicitAutograd")(transport_reference)


@torch.library.register_fake("worldenv::transport")
def _(frames, poses, camera):
    b, m, v, height, width, _ = frames.shape
    pictures = m + moves(poses.shape[1] - 1)
    return frames.new_empty(b, v, height // 2, width // 2, pictures, PATCH)
