"""Pictures as flow policies look at them: turned, resized with their shape kept, and filled up to a square."""

from torch import Tensor
from torch.nn import functional as F

from worldenv.data.orientation import STEPS
from worldenv.policy.flow.config import FlowConventions


def prepared(
    frames: Tensor,  # [B, V, H, W, 3] uint8, upright
    size: int,  # S
    conventions: FlowConventions,
) -> Tensor:  # [B, V, 3, S, S] float32, colours in -1 .. 1
    """The pictures in the policy's size."""
    rows, columns = STEPS[conventions.orientation]
    turned = [axis for axis, step in ((2, rows), (3, columns)) if step < 0]
    x = frames.flip(turned).permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 255  # [B * V, 3, H, W]
    height, width = x.shape[-2:]
    larger = max(width / size, height / size)
    height, width = max(1, int(height / larger)), max(1, int(width / larger))
    if x.shape[-2:] != (height, width):
        mode = conventions.resize
        x = F.interpolate(x, (height, width), mode=mode, align_corners=False, antialias=mode == "bicubic").clamp(0, 1)
    left, top = size - width, size - height
    if conventions.place != "left-top":
        left, top = (left // 2, top // 2) if conventions.place == "middle" else (0, 0)
    sides = left, size - width - left, top, size - height - top
    return F.pad(2 * x - 1, sides, value=conventions.fill).unflatten(0, frames.shape[:2])
