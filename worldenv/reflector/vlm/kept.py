"""Which frames of an episode are kept: a sample spread over all of it, though every frame is seen only once.

Every s-th frame is kept, and the present one. s is 1 at first; when the room is full, every other kept frame is dropped
and s doubles. So an episode keeps between half of its room and all of it, evenly spaced.
"""

from torch import Tensor


def stride(count: int, room: int) -> int:
    """s after `count` frames: the least power of two with which all but one of `room` places suffice."""
    s = 1
    while (count - 1) // s + 1 > room - 1:
        s *= 2
    return s


def places(count: int, room: int) -> list[int]:
    """The places of the kept frames in order; the last frame is the present one, number count - 1."""
    s = stride(count, room)
    regular = list(range((count - 1) // s + 1))
    return regular if (count - 1) % s == 0 else [*regular, room - 1]


def frames(count: int, room: int) -> list[int]:
    """The numbers of the kept frames, from 0, in the order of their places."""
    s = stride(count, room)
    regular = list(range(0, count, s))
    return regular if (count - 1) % s == 0 else [*regular, count - 1]


def keep(
    kept: Tensor,  # [E, room, ...]; written in place
    rows: Tensor,  # [B] int64, episodes that have seen equally many frames
    count: int,  # frames that they have seen before
    new: Tensor,  # [B, ...], the next frame of each
) -> None:
    """Put the next frame to its place, where need be after every other one has been dropped."""
    room = kept.shape[1]
    before, s = stride(count, room), stride(count + 1, room)
    if s != before:
        left = kept[rows, 0 : room - 1 : 2]
        kept[rows, : left.shape[1]] = left
    kept[rows, count // s if count % s == 0 else room - 1] = new
