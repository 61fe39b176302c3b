"""What things do that the gripper takes along, without a network: the last frame moved as the fingertips move."""

import torch
from torch import Tensor


def moves(chunk: int) -> int:
    """How many pairs of poses a chunk has: from the present one or a later one to one later still."""
    return chunk * (chunk + 1) // 2


def transport(
    last: Tensor,  # [B, 3, H, W] float32, the frame at poses[:, 0]
    poses: Tensor,  # [B, K + 1, 7] float32, the present pose first
    projection: Tensor,  # [3, 4] float32, world point (m) -> homogeneous pixel
) -> Tensor:  # [B, K (K + 1) / 2, 3, H, W] float32: (0, 1), (0, 2), .. (0, K), (1, 2), .. (K - 1, K)
    """`last` shifted and scaled as the projected fingertips move from pose i to pose j, for every i < j.

        source(x) = tip_i + (x - tip_j) * depth_j / depth_i

    Exact for a thing at the fingertips' depth that the gripper takes along from pose i to pose j and then leaves: one
    that it held before (i = 0), takes, pushes from then on, or lets go within the chunk. The simulator chooses where to
    believe which. Catmull-Rom resampling, which keeps small things sharp through many chunks; beyond the frame the
    border is repeated.
    """
    (height, width), k = last.shape[-2:], poses.shape[1] - 1
    homogeneous = poses[..., :3] @ projection[:, :3].T + projection[:, 3]
    depth = homogeneous[..., 2:].clamp(min=1e-3)
    tip = homogeneous[..., :2] / depth  # [B, K + 1, 2] px
    i, j = torch.triu_indices(k + 1, k + 1, 1, device=last.device)
    scale = depth[:, j] / depth[:, i]
    shift = tip[:, i] - tip[:, j] * scale
    across = _resampling(shift[..., 0], scale[..., 0], width)
    down = _resampling(shift[..., 1], scale[..., 0], height)
    return torch.einsum("bpyh,bpchx->bpcyx", down, torch.einsum("bchw,bpxw->bpchx", last, across))


def _resampling(
    shift: Tensor,  # [B, P] px
    scale: Tensor,  # [B, P]
    size: int,
) -> Tensor:  # [B, P, size, size], rows of weights: out[x] = sum over x' of weight[x, x'] in[x']
    centre = shift[..., None] + scale[..., None] * (torch.arange(size, device=shift.device) + 0.5) - 0.5
    first = centre.floor()
    t = centre - first
    taps = [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
    place = torch.stack([first + n for n in (-1, 0, 1, 2)], dim=-1).clamp(0, size - 1).long()
    weight = shift.new_zeros(*shift.shape, size, size)
    return weight.scatter_add_(-1, place, torch.stack(taps, dim=-1) / 2)
