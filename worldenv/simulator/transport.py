"""What a grasped thing does, without a network: the last frame moved along with the gripper, as the camera sees it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def transport(
    last: Tensor,  # [B, 3, H, W] float32, the frame at poses[:, 0]
    poses: Tensor,  # [B, K + 1, 7] float32, the present pose first
    projection: Tensor,  # [3, 4] float32, world point (m) -> homogeneous pixel
) -> Tensor:  # [B, K, 3, H, W] float32
    """`last` shifted and scaled so that the projected fingertips go from their present place to that of each pose.

        source(x) = tip_0 + (x - tip_k) * depth_k / depth_0

    Exact for things at the fingertips' depth that move with them; the simulator chooses where to believe it. Outside
    the frame the border is repeated. Bilinear.
    """
    b, n, (height, width) = len(last), poses.shape[1] - 1, last.shape[-2:]
    homogeneous = poses[..., :3] @ projection[:, :3].T + projection[:, 3]
    depth = homogeneous[..., 2:].clamp(min=1e-3)
    tip = homogeneous[..., :2] / depth / projection.new_tensor([width, height]) * 2 - 1  # [-1, 1] over the image
    scale = depth[:, 1:] / depth[:, :1]
    shift = tip[:, :1] - tip[:, 1:] * scale
    theta = torch.zeros(b, n, 2, 3, device=last.device)
    theta[..., 0, 0] = theta[..., 1, 1] = scale[..., 0]
    theta[..., 2] = shift
    grid = F.affine_grid(theta.flatten(0, 1), [b * n, 3, height, width], align_corners=False)
    source = last[:, None].expand(-1, n, -1, -1, -1).flatten(0, 1)
    return F.grid_sample(source, grid, padding_mode="border", align_corners=False).unflatten(0, (b, n))
