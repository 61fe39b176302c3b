"""Op `unpatchify`: imagined patches as pictures that can be looked at and stored."""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.ops.patchify import PATCH


def to_frames(patches: Tensor) -> Tensor:  # [B, h, w, N, 12] -> [B, N, 2 h, 2 w, 3]
    """`patchify` undone, in float32 and with a gradient."""
    b, h, w, n, _ = patches.shape
    return patches.view(b, h, w, n, 3, 2, 2).permute(0, 3, 1, 5, 2, 6, 4).reshape(b, n, 2 * h, 2 * w, 3)


def unpatchify_reference(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The meaning of `unpatchify`, in plain PyTorch."""
    finite = torch.isfinite(patches)
    pixels = torch.where(finite, patches, 0).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return to_frames(pixels), finite.flatten(1).all(1)


def unpatchify(
    patches: Tensor,  # [B, h, w, N, 12] float32, clamped to [-1, 1]
) -> tuple[Tensor, Tensor]:  # [B, N, 2 h, 2 w, 3] uint8; [B] bool, whether all numbers of the episode are finite
    """The frames of patches, rounded to 256 levels; what is not finite becomes grey and is reported.

    No gradient. Raises ValueError on another shape or dtype.
    """
    if patches.ndim != 5 or patches.shape[4] != PATCH or patches.dtype != torch.float32:
        raise ValueError(f"patches is {patches.dtype} {list(patches.shape)}; it should be float32 [B, h, w, N, 12]")
    face = unpatchify_reference if ops.BACKEND == "reference" else torch.ops.worldenv.unpatchify
    return face(patches.detach())


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::unpatchify", "CompositeExplicitAutograd")(unpatchify_reference)


@torch.library.register_fake("worldenv::unpatchify")
def _(patches):
    b, h, w, n, _ = patches.shape
    return patches.new_empty(b, n, 2 * h, 2 * w, 3, dtype=torch.uint8), patches.new_empty(b, dtype=torch.bool)
