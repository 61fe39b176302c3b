"""Op `patchify`: frames as patches of 2 x 2 pixels, in which composer and encoders read and write them."""

import torch
from torch import Tensor

from worldenv import ops

PATCH = 12  # numbers of a patch: 3 colours, each with its upper left, upper right, lower left and lower right pixel


def patchify_reference(frames: Tensor) -> Tensor:
    """The meaning of `patchify`, in plain PyTorch; from float32 frames it has a gradient."""
    b, n, height, width, _ = frames.shape
    cells = frames.view(b, n, height // 2, 2, width // 2, 2, 3)
    return cells.permute(0, 2, 4, 1, 6, 3, 5).reshape(b, height // 2, width // 2, n, PATCH)


def patchify(
    frames: Tensor,  # [B, N, H, W, 3] uint8 or float32; H and W even
) -> Tensor:  # [B, H / 2, W / 2, N, 12] of the same dtype
    """Frames as patches, those of one place side by side.

    Where a gradient is wanted, the reference is what runs. Raises ValueError on another shape or dtype.
    """
    check_frames(frames)
    if ops.BACKEND == "reference" or (torch.is_grad_enabled() and frames.requires_grad):
        return patchify_reference(frames)
    return torch.ops.worldenv.patchify(frames)


def unit(pixels: Tensor) -> Tensor:
    """Pixels as networks read them: uint8 in [0, 255] to float32 in [-1, 1]; floats stay as they are."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


def check_frames(frames: Tensor) -> None:
    if frames.ndim != 5 or frames.shape[4] != 3 or frames.shape[2] % 2 or frames.shape[3] % 2:
        raise ValueError(f"frames is {list(frames.shape)}; it should be [B, N, H, W, 3] with H and W even")
    if frames.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"frames is {frames.dtype}; it should be torch.uint8 or torch.float32")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::patchify", "CompositeExplicitAutograd")(patchify_reference)


@torch.library.register_fake("worldenv::patchify")
def _(frames):
    b, n, height, width, _ = frames.shape
    return frames.new_empty(b, height // 2, width // 2, n, PATCH)
