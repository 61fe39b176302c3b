"""Op `transport`: the known pictures of a chunk, and what things do that the gripper takes along, without a network."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.patchify import PATCH, check_frames, patchify_reference, unit


def moves(chunk: int) -> int:
    """How many pairs of poses a chunk has: from the present one or a later one to one later still."""
    return chunk * (chunk + 1) // 2


def transport_reference(frames: Tensor, poses: Tensor, projection: Tensor) -> Tensor:
    """The meaning of `transport`, in plain PyTorch; from float32 frames it has a gradient."""
    (height, width), k = frames.shape[2:4], poses.shape[1] - 1
    homogeneous = poses[..., :3] @ projection[:, :3].T + projection[:, 3]
    depth = homogeneous[..., 2:].clamp(min=1e-3)
    tip = homogeneous[..., :2] / depth  # [B, K + 1, 2] px
    i, j = torch.triu_indices(k + 1, k + 1, 1, device=frames.device)
    scale = depth[:, j] / depth[:, i]
    shift = tip[:, i] - tip[:, j] * scale
    across = _resampling(shift[..., 0], scale[..., 0], width)
    down = _resampling(shift[..., 1], scale[..., 0], height)
    moved = torch.einsum("bpyh,bphxc->bpyxc", down, torch.einsum("bhwc,bpxw->bphxc", unit(frames[:, -1]), across))
    if frames.dtype == torch.uint8:
        moved = (moved.nan_to_num().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return patchify_reference(torch.cat([frames, moved], dim=1))


def _resampling(
    shift: Tensor,  # [B, P] px
    scale: Tensor,  # [B, P]
    size: int,
) -> Tensor:  # [B, P, size, size], rows of weights: out[x] = sum over x' of weight[x, x'] in[x']
    centre = shift[..., None] + scale[..., None] * (torch.arange(size, device=shift.device) + 0.5) - 0.5
    first = centre.floor()
    t = centre - first
    taps = [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
    place = torch.stack([first + n for n in (-1, 0, 1, 2)], dim=-1).nan_to_num().clamp(0, size - 1).long()
    weight = shift.new_zeros(*shift.shape, size, size)
    return weight.scatter_add_(-1, place, torch.stack(taps, dim=-1) / 2)


def transport(
    frames: Tensor,  # [B, M, H, W, 3] uint8 in [0, 255] or float32 in [-1, 1], the present one last; H and W even
    poses: Tensor,  # [B, K + 1, 7] float32, the present pose first
    projection: Tensor,  # [3, 4] float32, world point (m) -> homogeneous pixel
) -> Tensor:  # [B, H / 2, W / 2, M + K (K + 1) / 2, 12] as frames: their patches, then (0, 1), .. (K - 1, K)
    """The frames as they are, and the last one moved as the projected fingertips move from pose i to any later pose j.

        source(x) = tip_i + (x - tip_j) * depth_j / depth_i

    Exact for a thing at the fingertips' depth that the gripper takes along from pose i to pose j and then leaves: one
    that it held before (i = 0), takes, pushes from then on, or lets go within the chunk. The simulator chooses where to
    believe which. Catmull-Rom resampling, which keeps small things sharp through many chunks; beyond the frame the
    border is repeated. From uint8 frames the result is rounded to pixels; where a pose is not finite, they are grey.
    The poses have no gradient; where one is wanted for the frames, the reference is what runs.

    Raises ValueError if a shape, dtype or device is another one.
    """
    check_frames(frames)
    if poses.ndim != 3 or poses.shape[2] != 7 or len(poses) != len(frames) or poses.dtype != torch.float32:
        raise ValueError(f"poses is {poses.dtype} {list(poses.shape)}; it should be float32 [{len(frames)}, K + 1, 7]")
    if projection.shape != (3, 4) or projection.dtype != torch.float32:
        raise ValueError(f"projection is {projection.dtype} {list(projection.shape)}; it should be float32 [3, 4]")
    if not frames.device == poses.device == projection.device:
        raise ValueError(f"frames is on {frames.device}, poses on {poses.device}, projection on {projection.device}")
    if ops.BACKEND == "reference" or (torch.is_grad_enabled() and frames.requires_grad):
        return transport_reference(frames, poses, projection)
    return torch.ops.worldenv.transport(frames, poses, projection)


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::transport", "CompositeExplicitAutograd")(transport_reference)


@torch.library.register_fake("worldenv::transport")
def _(frames, poses, projection):
    b, m, height, width, _ = frames.shape
    pictures = m + moves(poses.shape[1] - 1)
    return frames.new_empty(b, height // 2, width // 2, pictures, PATCH)
