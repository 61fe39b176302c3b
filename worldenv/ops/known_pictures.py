"""Op `known_pictures`: the known pictures of a chunk, and guesses at what comes, without a network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldenv import ops
from worldenv.ops.patchify import PATCH, patchify_reference
from worldenv.ops.unpatchify import to_frames

POSITION = 3  # numbers of a tip that are read
THERE = 0.05  # the share of a pixel from which on the thing counts as there


def pictures(chunk: int) -> int:
    """How many pictures a chunk of K actions has: the last frame, and four for each action."""
    return 1 + 4 * chunk


def known_pictures_reference(
    first: Tensor,  # [B, H, W, 3] uint8
    last: Tensor,  # [B, H, W, 3] uint8
    clear: Tensor,  # [B, H, W, 3] uint8
    mask: Tensor,  # [B, H, W] uint8
    hidden: Tensor,  # [B, K, H, W] uint8
    tips: Tensor,  # [B, K + 2, P]
    places: Tensor,  # [B, K + 2, 3]
    camera: Tensor,  # [B, 1, 3, 4]
    plate: Tensor,  # [H / 2, W / 2, 12]
) -> Tensor:  # [B, H / 2, W / 2, 1 + 4 K, 12] uint8
    """The meaning of `known_pictures`, in plain PyTorch."""
    with_tips = moved(last, tips[:, 1:], camera), moved(first, torch.cat([tips[:, :1], tips[:, 2:]], dim=1), camera)
    thing = torch.cat([clear, mask[..., None]], dim=3)
    layer = moved(thing, places, camera).nan_to_num(nan=0).clamp(0, 255)  # now, and after each action
    colour, share = layer[..., :3], layer[..., 3:] / 255
    empty = torch.where(
        _grown(mask[..., None] / 255), _rounded(to_frames((plate[None, :, :, None] + 1) * 127.5)[:, 0]), clear
    )
    bases = torch.where(_grown(share[:, 0]), empty, last)[:, None], empty[:, None]
    shows = share[:, 1:] * ((255 - hidden[..., None].float()) / 255)
    guesses = [base + shows * (colour[:, 1:] - base) for base in bases]
    return patchify_reference(
        torch.cat([last[:, None], *(_rounded(frames) for frames in (*with_tips, *guesses))], dim=1)
    )


def moved(
    picture: Tensor,  # [B, H, W, C] uint8
    points: Tensor,  # [B, 1 + N, P], in `picture`, and then
    camera: Tensor,  # [B, 1, 3, 4]
) -> Tensor:  # [B, N, H, W, C] float32 in [0, 255], or somewhat beyond
    """The picture moved with the point."""
    height, width = picture.shape[1:3]
    homogeneous = points[..., :POSITION] @ camera[:, 0, :, :3].mT + camera[:, :, :, 3]
    depth = homogeneous[..., 2:].clamp(min=1e-3)
    seen = homogeneous[..., :2] / depth  # px
    scale = depth[:, 1:] / depth[:, :1]
    shift = seen[:, :1] - seen[:, 1:] * scale
    across = _resampling(shift[..., 0], scale[..., 0], width)
    down = _resampling(shift[..., 1], scale[..., 0], height)
    return torch.einsum("bnyh,bnhxc->bnyxc", down, torch.einsum("bhwc,bnxw->bnhxc", picture.float(), across))


def _resampling(
    shift: Tensor,  # [B, N] px
    scale: Tensor,  # [B, N]
    size: int,
) -> Tensor:  # [B, N, size, size], rows of weights: out[x] = sum over x' of weight[x, x'] in[x']
    centre = (
        shift[..., None] + scale[..., None] * (torch.arange(size, dtype=shift.dtype, device=shift.device) + 0.5) - 0.5
    )
    first = centre.floor()
    t = centre - first
    taps = [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
    place = torch.stack([first + n for n in (-1, 0, 1, 2)], dim=-1).nan_to_num().clamp(0, size - 1).long()
    weight = shift.new_zeros(*shift.shape, size, size)
    return weight.scatter_add_(-1, place, torch.stack(taps, dim=-1) / 2)


def _grown(share: Tensor) -> Tensor:  # [B, H, W, 1] -> bool: where the thing is, and one pixel around it
    return F.max_pool2d(share.movedim(3, 1), 3, stride=1, padding=1).movedim(1, 3) > THERE


def _rounded(frames: Tensor) -> Tensor:  # to uint8; what is not a number is grey
    return frames.nan_to_num(nan=127.5).clamp(0, 255).round().to(torch.uint8)


def known_pictures(
    first: Tensor,  # [B, H, W, 3] uint8, the episode's first frame; H and W even
    last: Tensor,  # [B, H, W, 3] uint8, the present one
    clear: Tensor,  # [B, H, W, 3] uint8, one from when the gripper was last away from things
    mask: Tensor,  # [B, H, W] uint8, of the thing in `clear` that the gripper moves; 255: all of a pixel is the thing's
    hidden: Tensor,  # [B, K, H, W] uint8, how much nearer things hide of the thing after each action; 255: all
    tips: Tensor,  # [B, K + 2, P] float32, fingertips xyz (m) in `first`, now, after each action; others unread
    places: Tensor,  # [B, K + 2, 3] float32, the thing's xyz (m) in `clear`, now, after each action
    camera: Tensor,  # [B, 1, 3, 4] float32, world point (m) -> homogeneous pixel
    plate: Tensor,  # [H / 2, W / 2, 12] float32 patches in [-1, 1], the empty scene
) -> Tensor:  # [B, H / 2, W / 2, 1 + 4 K, 12] uint8 patches
    """What is known before a chunk of K actions of how the scene will look. The pictures, in this order:

    - `last`;
    - for each action, `last` moved with the fingertips from now to after it: right for what they hold now;
    - for each action, `first` moved with the fingertips: right for the gripper;
    - for each action, `last` with the thing where it will be, the scene behind it where it is now;
    - for each action, `clear` with the thing where it will be.

    A picture moves with a point from a to b as a camera sees a thing at the point's depth move:

        source(x) = a + (x - b) * depth_b / depth_a, a and b in pixels

    by Catmull-Rom resampling; beyond the frame the border is repeated. Where a tip is not finite the picture is grey.

    The thing is `clear` and `mask`, moved to its place. Its share of a pixel is the moved mask / 255 in [0, 1], times
    1 - hidden / 255; a place that is not finite shows nothing. The thing is laid over a base without the thing,
    base + share * (colour - base). One base is `clear`, with `plate` where the thing was. The other is `last`, with the
    first base where the thing is now. Both areas are one pixel larger than where the thing's share, hidden or not, is
    above 0.05. With a mask of zeros the guesses are `last` and `clear`.

    Computed in float32 and rounded once, half to even. No gradient. Raises ValueError if a shape, dtype or device is
    another one.
    """
    arguments = (first, last, clear, mask, hidden, tips, places, camera, plate.detach())
    _check(*arguments)
    face = known_pictures_reference if ops.BACKEND == "reference" else torch.ops.worldenv.known_pictures
    return face(*arguments)


def _check(
    first: Tensor,
    last: Tensor,
    clear: Tensor,
    mask: Tensor,
    hidden: Tensor,
    tips: Tensor,
    places: Tensor,
    camera: Tensor,
    plate: Tensor,
) -> None:
    shape = first.shape
    if first.ndim != 4 or shape[1] % 2 or shape[2] % 2 or shape[3] != 3:
        raise ValueError(f"first is {list(shape)}; it should be [B, H, W, 3] with H and W even")
    b, height, width, _ = shape
    if tips.ndim != 3 or tips.shape[0] != b or tips.shape[1] < 2 or tips.shape[2] < POSITION:
        raise ValueError(f"tips is {list(tips.shape)}; it should be [{b}, K + 2, P] with P at least {POSITION}")
    frames = {"first": (first, shape), "last": (last, shape), "clear": (clear, shape), "mask": (mask, shape[:3])}
    ops.check_tensors(frames | {"hidden": (hidden, (b, tips.shape[1] - 2, height, width))}, (torch.uint8,))
    ops.check_tensors(
        {
            "tips": (tips, tips.shape),
            "places": (places, (b, tips.shape[1], 3)),
            "camera": (camera, (b, 1, 3, 4)),
            "plate": (plate, (height // 2, width // 2, PATCH)),
        }
    )
    if first.device != tips.device:
        raise ValueError(f"tips is on {tips.device}; it should be on {first.device}, as first is")


# What torch runs on a device for which no face is built.
torch.library.impl("worldenv::known_pictures", "CompositeExplicitAutograd")(known_pictures_reference)


@torch.library.register_fake("worldenv::known_pictures")
def _(first, last, clear, mask, hidden, tips, places, camera, plate):
    b, height, width, _ = first.shape
    return first.new_empty(b, height // 2, width // 2, pictures(tips.shape[1] - 2), PATCH)
