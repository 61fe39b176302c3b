"""Other pictures of the same moment: what a policy that has few recordings learns to ignore."""

import torch
from torch import Tensor

from worldenv.training.share import Share

LIGHT = 0.1  # largest change of contrast, and of brightness as a share of half the range
# Standard deviations of the noise on proprioception: position (m), axis-angle (rad), opening of the fingers (share).
PROPRIO = (0.005, 0.005, 0.005, 0.01, 0.01, 0.01, 0.02)


def augmented(
    frames: Tensor,  # [B, H, W, 3] uint8
    proprio: Tensor,  # [B, 7] float32
    shift_px: int,  # the largest shift
    generator: torch.Generator,
    share: Share,  # to which these rows belong
) -> tuple[Tensor, Tensor]:
    """Pictures shifted at random and in another light, and proprioception with noise. `shift_px` 0 changes nothing.

    Beyond the border, a shifted picture repeats it (after DrQ, arXiv 2004.13649).
    """
    if not shift_px:
        return frames, proprio
    (_, height, width, _), n = frames.shape, share.size
    down, across = share.own(torch.randint(-shift_px, shift_px + 1, (n, 2, 1), generator=generator)).unbind(1)
    contrast, light = share.own(LIGHT * (2 * torch.rand(n, 2, 1, 1, 1, generator=generator) - 1)).unbind(1)
    noise = share.own(torch.tensor(PROPRIO) * torch.randn(n, len(PROPRIO), generator=generator))
    rows, columns = (
        (torch.arange(size) + shift).clamp(0, size - 1) for size, shift in ((height, down), (width, across))
    )
    moved = frames[torch.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None]]
    lit = (moved - 127.5) * (1 + contrast) + 127.5 * (1 + light)
    return lit.round().clamp(0, 255).to(torch.uint8), proprio + noise
