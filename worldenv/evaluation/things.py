"""Object permanence: does a thing stay what it is, where it is, and one, in frames that a detector has looked at?"""

import numpy as np

from worldenv.interfaces.suite import Things

LEAST_PX = 12  # a thing that shows less of itself in the first frame cannot be followed
VANISHED, FADED, SHRUNK = 0.1, 0.35, 0.6  # a state holds below this share of the thing's first area
SPLIT, DOUBLED = 0.1, 0.15  # the least share of the first area that counts as a part, and as a place


def late_frames(horizon: int) -> list[int]:
    """The three frames in which the thing that the task moves is looked at: 20, 30 and 39 of 40 actions."""
    return [horizon // 2, 3 * horizon // 4, horizon - 1]


def aimed_thing(things: Things) -> dict[str, float]:
    """Of the things that the tasks move, in all frames but the first: the share of frames in which it is below 60 %
    and below 35 % of its first area, and stands in two places: two parts of at least 15 % of that area each, further
    apart than half of the thing's size.

    `n` counts those frames; a share is None where there are none.
    """
    rows = np.flatnonzero(things.aim >= 0)
    part, centre = things.area[rows, :, things.aim[rows]], things.centre[rows, :, things.aim[rows]]
    whole = part[:, :1].sum(-1)
    use = whole[:, 0] >= LEAST_PX
    part, centre, whole = part[use, 1:], centre[use, 1:], whole[use]
    share = part.sum(-1) / whole
    found = {"below_60": share < SHRUNK, "below_35": share < FADED, "two_places": doubled(part, centre, whole)}
    return {name: float(state.mean()) if state.size else None for name, state in found.items()} | {"n": share.size}


def doubled(
    part: np.ndarray,  # [..., P] px, largest first
    centre: np.ndarray,  # [..., P, 2] px
    whole: np.ndarray,  # [...] px, the first area
) -> np.ndarray:  # [...] bool
    """Whether the two largest parts are places of a thing of their own."""
    apart = np.linalg.norm(centre[..., 0, :] - centre[..., 1, :], axis=-1)  # NaN where there are not two parts
    return (part[..., 1] >= DOUBLED * whole) & (apart > 0.5 * np.sqrt(whole))
