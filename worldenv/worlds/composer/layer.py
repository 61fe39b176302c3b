"""The layer: what the gripper moves, cut out of a clear frame and painted where it is now.

Frames that are copied from frames lose a little each time. What lies still is copied exactly, and what is moved is
taken from the same clear frame at every pass, so nothing fades, however long an episode is.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.interfaces.slots import Slots
from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.patchify import patchify
from worldenv.ops.unpatchify import to_frames

POSITION, APERTURE = slice(0, 3), 6  # numbers of a pose
HALF_OPEN = 0.5 + 1e-4  # fingers that are no wider open can hold a thing
SIZE, PIXEL_M = 32, 0.006  # of a window: pixels on each side, and what one of them is at the window's depth


@dataclass
class Thing(Slots):
    """A thing of each episode, as it looks in a clear frame."""

    mask: Tensor  # [E, H, W] uint8, its share of each pixel; 255: all. All zero if there is none
    origin: Tensor  # [E, 3] float32 m, where it is in the clear frame
    place: Tensor  # [E, 3] float32 m, where it is now

    def where(self, use: Tensor, other: Self) -> Self:  # [E] bool
        """This thing where `use`, elsewhere the other one."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return Thing(*(torch.where(use.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


@dataclass
class Layer(Slots):
    """The layer of each episode: the thing that was moved last, and another one, which was moved before or is pushed.

    Both are always taken from the same clear frame, until the gripper has been above everything again.
    """

    clear: Tensor  # [E, H, W, 3] uint8, a frame from when the gripper was last above everything
    thing: Thing  # moved last
    other: Thing
    held: Tensor  # [E] bool, whether the gripper holds the thing
    opening: Tensor  # [E] float32, at which the held thing stops the fingers; 0: nothing is held

    @classmethod
    def begin(cls, frame: Tensor, position: Tensor) -> "Layer":  # [E, H, W, 3] uint8, [E, 3]
        """Nothing has been moved yet."""
        nothing = (Thing(torch.zeros_like(frame[..., 0]), position.clone(), position.clone()) for _ in range(2))
        held = frame.new_zeros(len(frame), dtype=torch.bool)
        return cls(frame.clone(), *nothing, held, held.float())

    def scene(self, camera: Tensor, plate: Tensor) -> Tensor:  # [E, 3, 4], [H, W, 3] -> [E, H, W, 3] uint8
        """The clear frame with the other thing where it is now."""
        return with_other(self.clear, self.thing.mask, self.other, camera, plate)


def with_moved(
    frame: Tensor,  # [B, H, W, 3] uint8
    mask: Tensor,  # [B, H, W] uint8, of a thing in it; 255: all of a pixel
    origin: Tensor,  # [B, 3] m, where the thing is in it
    place: Tensor,  # [B, 3] m
    camera: Tensor,  # [B, 3, 4]
    plate: Tensor,  # [H, W, 3] float32 in [-1, 1]
) -> Tensor:  # [B, H, W, 3] uint8
    """The frame with the thing moved to a place, and the empty scene where it was."""
    points = torch.stack([origin, place, place], dim=1)
    frames, hidden, plate = (frame,) * 3, torch.zeros_like(mask)[:, None], patchify(plate[None, None])[0, :, :, 0]
    known = known_pictures(*frames, mask, hidden, points, points, camera[:, None], plate)
    return to_frames(known[:, :, :, -1:])[:, 0]


def with_other(
    clear: Tensor,  # [B, H, W, 3] uint8
    mask: Tensor,  # [B, H, W] uint8, of the layer's thing, whose pixels stay as they are
    other: Thing,  # of B episodes
    camera: Tensor,  # [B, 3, 4]
    plate: Tensor,  # [H, W, 3] float32 in [-1, 1]
) -> Tensor:  # [B, H, W, 3] uint8
    """The clear frame with the other thing where it is now."""
    has_moved, is_free = (other.place != other.origin).any(1), mask == 0
    rows = rows_with(has_moved & (other.mask > 0).any(2).any(1))
    if not len(rows):
        return clear
    before, part, is_free = clear[rows], other[rows], is_free[rows]
    there = with_moved(before, part.mask * is_free, part.origin, part.place, camera[rows], plate)
    out = clear.clone()
    out[rows] = torch.where((is_free & has_moved[rows, None, None])[..., None], there, before)
    return out


def rows_with(mask: Tensor) -> Tensor:  # [B] bool -> [M] int64
    """The rows to work on: those of the mask; on a GPU all, for to count them the host would wait for the device."""
    return torch.nonzero(mask)[:, 0] if mask.device.type == "cpu" else torch.arange(len(mask), device=mask.device)


def renewed(frame: Tensor, before: Tensor, after: Tensor) -> Tensor:  # [B, H, W, 3] uint8 each
    """The frame, and `after` in the pixels in which `before` and `after` differ."""
    return torch.where((before != after).any(3, keepdim=True), after, frame)


def project(point: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:  # [B, 3], [B, 3, 4] -> [B, 2] px, [B] m
    """Where a point is in the picture, and its depth."""
    homogeneous = (camera[:, :, :3] @ point[:, :, None])[:, :, 0] + camera[:, :, 3]
    depth = homogeneous[:, 2].clamp(min=1e-3)
    return homogeneous[:, :2] / depth[:, None], depth


def window_offsets(device: torch.device) -> Tensor:  # [SIZE], of the pixels of a window from its middle
    return torch.arange(SIZE, dtype=torch.float32, device=device) - (SIZE - 1) / 2


def in_window(points: Tensor, camera: Tensor, centre: Tensor) -> Tensor:  # [B, N, 3] m, ..., [B, 3] -> [B, N, 2]
    """Where points are in the windows around `centre`: pixels from the middle."""
    tip, depth = project(centre, camera)
    place, _ = project(points.flatten(0, 1), camera.repeat_interleave(points.shape[1], 0))
    return (place.unflatten(0, points.shape[:2]) - tip[:, None]) / _pixels(camera, depth)[:, None, None]


def window(
    picture: Tensor,  # [B, H, W, C] float32
    camera: Tensor,  # [B, 3, 4]
    centre: Tensor,  # [B, 3] m
    moved: tuple[Tensor, Tensor] | None = None,  # [B, 3], [B, 3] m: the picture is moved from here to there before
) -> Tensor:  # [B, C, SIZE, SIZE]
    """The surroundings of a point, as large as they are whatever their depth."""
    height, width = picture.shape[1:3]
    tip, depth = project(centre, camera)
    offset, step = window_offsets(picture.device), _pixels(camera, depth)
    place = tip[:, :, None] + step[:, None, None] * offset  # [B, 2, SIZE]: x, y
    if moved is not None:
        (here, near), (there, far) = (project(point, camera) for point in moved)
        place = here[:, :, None] + (place - there[:, :, None]) * (far / near)[:, None, None]
    x, y = place[:, 0] * (2 / width) - 1, place[:, 1] * (2 / height) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
    return F.grid_sample(picture.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)


def unwindow(
    seen: Tensor,  # [B, C, SIZE, SIZE] float32
    camera: Tensor,  # [B, 3, 4]
    centre: Tensor,  # [B, 3] m
    size: tuple[int, int],  # H, W
) -> Tensor:  # [B, C, H, W], 0 outside of the window
    """What a window shows, put back into the picture."""
    tip, depth = project(centre, camera)
    step = _pixels(camera, depth) * (SIZE / 2)
    x, y = (
        (torch.arange(n, dtype=tip.dtype, device=tip.device) + 0.5 - tip[:, i, None]) / step[:, None]
        for i, n in ((0, size[1]), (1, size[0]))
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
    return F.grid_sample(seen, grid, padding_mode="zeros", align_corners=False)


def _pixels(camera: Tensor, depth: Tensor) -> Tensor:  # [B, 3, 4], [B] -> [B]
    """Pixels of the picture for one of a window."""
    row, axis = camera[:, 0, :3], camera[:, 2, :3]
    focal = (row - (row * axis).sum(1, keepdim=True) * axis).norm(dim=1)
    return PIXEL_M * focal / depth


def attempts(poses: Tensor) -> Tensor:  # [B, K + 1, P] -> [B, K] bool
    """The steps in which the fingers close far enough to grasp something."""
    opening = poses[:, :, APERTURE]
    return (opening[:, 1:] < opening[:, :-1] - 1e-4) & (opening[:, 1:] <= HALF_OPEN)


def undecided(poses: Tensor, held: Tensor) -> Tensor:  # [B, K + 1, P], [B] bool -> [B, K] bool
    """Whether it is to be decided, after each step, that the gripper has grasped something or nothing."""
    return (attempts(poses).cumsum(1) > 0) & (poses[:, 1:, APERTURE] <= HALF_OPEN) & ~held[:, None]


def holding(grasps: Tensor, poses: Tensor, held: Tensor) -> Tensor:  # [B, K] bool, [B, K + 1, P], [B] -> [B, K + 1]
    """Whether the gripper holds something after each step: from the first grasp while closing, until it opens."""
    closing, closed = attempts(poses), poses[:, :, APERTURE] <= HALF_OPEN
    out, may = [held], torch.zeros_like(held)
    for j in range(grasps.shape[1]):
        may = (may | closing[:, j]) & closed[:, j + 1]
        out.append((out[-1] | (may & grasps[:, j])) & closed[:, j + 1])
    return torch.stack(out, dim=1)


def carried(poses: Tensor, held: Tensor) -> Tensor:  # [B, K + 1, P], [B, K + 1] bool -> [B, K + 1, 3] m
    """How far a thing has come with the gripper; in the step that lets it go, a quarter of the way."""
    way = poses[:, 1:, POSITION] - poses[:, :-1, POSITION]
    share = (held[:, :-1] * (0.25 + 0.75 * held[:, 1:].to(way.dtype)))[:, :, None]
    return F.pad((share * way).cumsum(1), (0, 0, 1, 0))
