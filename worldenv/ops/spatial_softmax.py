"""Op `spatial_softmax`: where each channel of an image looks, and how strongly, in one pass."""

import torch
from torch import Tensor

from worldenv import ops


def spatial_softmax_reference(features: Tensor) -> Tensor:
    """The meaning of `spatial_softmax`, in plain PyTorch; it has a gradient."""
    b, c, h, w = features.shape
    weight = features.flatten(2).softmax(-1).view(b, c, h, w)
    x = torch.linspace(-1, 1, w, device=features.device, dtype=features.dtype)
    y = torch.linspace(-1, 1, h, device=features.device, dtype=features.dtype)
    peak = (weight * features).sum((2, 3))
    return torch.cat([weight.sum(2) @ x, weight.sum(3) @ y, peak], dim=-1)


def spatial_softmax(
    features: Tensor,  # [B, C, H, W] float32, channels last in memory (other layouts are copied); H, W >= 2
) -> Tensor:  # [B, 3 C] float32: x of every channel, then y, then the peak
    """Softmax over the places of a channel; the mean of x and of y in [-1, 1] and of the feature under it.

    Levine et al. 2016, "End-to-end training of deep visuomotor policies". Where a gradient is wanted, the reference is
    what runs. Raises ValueError on another shape or dtype.
    """
    if features.ndim != 4 or min(features.shape[2:]) < 2 or features.dtype != torch.float32:
        raise ValueError(
            f"features is {features.dtype} {list(features.shape)}; it should be float32 [B, C, H, W] with H, W >= 2"
        )
    if ops.BACKEND == "reference" or (torch.is_grad_enabled() and features.requires_grad):
        return spatial_softmax_reference(features)
    return torch.ops.worldenv.spatial_softmax(features.permute(0, 2, 3, 1).contiguous())


def _rows(rows: Tensor) -> Tensor:  # [B, H, W, C] as the faces take it
    return spatial_softmax_reference(rows.permute(0, 3, 1, 2))


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::spatial_softmax", "CompositeExplicitAutograd")(_rows)


@torch.library.register_fake("worldenv::spatial_softmax")
def _(rows):
    return rows.new_empty(rows.shape[0], 3 * rows.shape[3])
