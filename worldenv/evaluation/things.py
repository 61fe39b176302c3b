"""Object permanence: does a thing stay what it is, where it is, and one, in frames that a detector has looked at?"""

from dataclasses import dataclass

import numpy as np

from worldenv.interfaces.suite import Things
from worldenv.robot.robot import Robot

STATES = ("vanished", "below_35", "below_60", "split", "doubled", "recoloured")  # of a thing at the end of a chunk
EVENTS = ("teleported", "passed_through")  # within a chunk
LEAST_PX = 12  # a thing that shows less of itself in the first frame cannot be followed
VANISHED, FADED, SHRUNK = 0.1, 0.35, 0.6  # a state holds below this share of the thing's first area
PART, PLACE = 0.1, 0.15  # the least share of the first area that counts as a part, and as a place of its own
APART = 0.75  # of the size of a thing: nearer parts are one place
OTHER = 0.25  # likewise, of another look that stands where the thing was
NEAR, AWAY = 1 / 8, 1 / 16  # of the width of the picture: as far as a gripper touches; left its place
LOW_M = 0.06  # above the table: lower fingertips can touch things, if the robot's `clear_m` is unknown
TABLE_M = 0.018  # above the table: closed fingertips that are lower cannot pass over a thing
CLOSED = 0.5  # opening of the gripper


@dataclass(frozen=True)
class Gripper:
    """Where the fingertips are in every frame of N episodes."""

    pixel: np.ndarray  # [N, T, 2] (x, y) in the first view
    height: np.ndarray  # [N, T] m above the table
    is_low: np.ndarray  # [N, T] bool, whether they can touch things
    opening: np.ndarray  # [N, T], 0 closed .. 1 open


@dataclass(frozen=True)
class Chunks:
    """Things at the ends of chunks, and the gripper in all frames between them."""

    things: Things  # of C + 1 frames: the first frame and the last one of each of C chunks
    gripper: Gripper | None  # of C * length + 1 frames; None: the suite's robot cannot be projected
    length: int  # frames of a chunk
    width: int  # of the picture, px

    @property
    def whole(self) -> np.ndarray:  # [N, 1, D] px
        """The first area of each thing."""
        return self.things.area[:, :1].sum(-1)

    @property
    def followed(self) -> np.ndarray:  # [N, D] bool
        """The things that can be followed: those that the detector knows and the first frame shows."""
        return self.things.known & (self.whole[:, 0] >= LEAST_PX)

    @property
    def share(self) -> np.ndarray:  # [N, C + 1, D]
        """Area as a share of the first one."""
        return self.things.area.sum(-1) / np.maximum(self.whole, 1)

    @property
    def place(self) -> np.ndarray:  # [N, C + 1, D, 2] px
        """Where the largest part is; where the thing was last seen while it shows less than 35 % of itself."""
        seen = (self.share >= FADED) & (self.things.area[..., 0] > 0)
        last = np.maximum.accumulate(np.where(seen, np.arange(seen.shape[1])[:, None], 0), axis=1)
        return np.take_along_axis(self.things.centre[..., 0, :], last[..., None], axis=1)


def project(
    proprio: np.ndarray,  # [N, T, 7] float32: xyz (m), axis-angle, opening
    camera: np.ndarray,  # [N, V, 3, 4] float32
    robot: Robot,
) -> Gripper:
    """The fingertips in the picture of the first view."""
    point = np.concatenate([proprio[..., :3], np.ones_like(proprio[..., :1])], axis=-1)
    x, y, depth = np.moveaxis(point @ camera[:, 0].swapaxes(1, 2), -1, 0)
    height, clear_m = proprio[..., 2] - robot.ground_m, robot.clear_m
    is_low = height < (LOW_M if clear_m is None else clear_m - robot.ground_m)
    return Gripper(np.stack([x, y], axis=-1) / depth[..., None], height, is_low, proprio[..., 6])


def permanence(chunks: Chunks) -> dict[str, dict[str, list]]:
    """By chunk: the share of things with each defect, of those that were moved up to then and of the untouched ones.

    A thing counts as moved from the chunk on in which low fingertips come near it or it leaves its place. `n` counts
    the things; a share is None where there are none. Without a gripper, only leaving its place counts, and there are no
    events.

    - vanished, below_35, below_60: less than 10, 35, 60 % of the thing's first area shows at the end of the chunk.
    - split: two parts or more of at least 10 % of that area each, where there was one.
    - doubled: see `doubled`.
    - recoloured: the thing is below 35 %, and a look that the first frame did not show stands where it was.
    - teleported: no part of at least 15 % is where it was a chunk ago, 60 % of it showed and shows, and no gripper was
      near either place.
    - passed_through: closed fingertips went along the table and through its middle, and it stayed.
    """
    states, events, moved = find_states(chunks), find_events(chunks), find_moved(chunks)
    groups = {"moved": moved, "untouched": ~moved}
    out = {}
    for name, group in groups.items():
        now, before = group[:, 1:] & chunks.followed[:, None], group[:, :-1] & chunks.followed[:, None]
        passes = now if name == "moved" else before  # fingertips that pass through a thing have come near it
        out[name] = {"n": now.sum((0, 2)).tolist()}
        for defect, found in states.items():
            out[name][defect] = _shares(found[:, 1:], now)
        for defect, found in events.items():
            out[name][defect] = _shares(found, before if defect == "teleported" else passes)
    return out


def _shares(found: np.ndarray, of: np.ndarray) -> list[float | None]:  # [N, C, D] bool -> [C]
    counts, hits = of.sum((0, 2)), (found & of).sum((0, 2))
    return [float(hit / count) if count else None for hit, count in zip(hits, counts, strict=True)]


def find_states(chunks: Chunks) -> dict[str, np.ndarray]:  # [N, C + 1, D] bool
    """Which things are in a state that a real thing is never in, unless something hides it."""
    area, whole, share = chunks.things.area, chunks.whole, chunks.share
    parts = (area >= np.maximum(PART * whole[..., None], 1)).sum(-1)
    return {
        "vanished": share < VANISHED,
        "below_35": share < FADED,
        "below_60": share < SHRUNK,
        "split": (parts >= 2) & (parts[:, :1] < 2),
        "doubled": doubled(area, chunks.things.centre, whole),
        "recoloured": (share < FADED) & _other_at_its_place(chunks),
    }


def doubled(
    area: np.ndarray,  # [..., P] px, of the parts, largest first
    centre: np.ndarray,  # [..., P, 2] px
    whole: np.ndarray,  # [...] px, the first area
) -> np.ndarray:  # [...] bool
    """Whether a thing stands in two places: two parts of at least 15 % of its first area each, further apart than
    three quarters of its size (the root of that area): the halves of a thing that is cut in place are one place."""
    apart = np.linalg.norm(centre[..., 0, :] - centre[..., 1, :], axis=-1)  # NaN where there are not two parts
    return (area[..., 1] >= np.maximum(PLACE * whole, 1)) & (apart > APART * np.sqrt(whole))


def _other_at_its_place(chunks: Chunks) -> np.ndarray:  # [N, C + 1, D] bool
    things, place = chunks.things, chunks.place
    out = np.zeros(place.shape[:-1], dtype=bool)
    new = things.area[:, 0, :, 0] < LEAST_PX  # [N, D]: looks that the first frame does not show
    places = [place]
    if chunks.gripper is not None:  # a thing that is carried is where the fingertips are
        carried = find_moved(chunks)[..., None]
        places.append(np.where(carried, chunks.gripper.pixel[:, :: chunks.length, None], np.nan))
    for look in range(things.area.shape[2]):
        large = things.area[:, :, look, None, :1] >= OTHER * chunks.whole[..., None]  # [N, C + 1, D, 1]
        for where in places:
            apart = np.linalg.norm(things.centre[:, :, look, None, 0] - where, axis=-1)
            out |= new[:, None, look, None] & large[..., 0] & (apart < NEAR * chunks.width)
    return out


def find_moved(chunks: Chunks) -> np.ndarray:  # [N, C + 1, D] bool
    """Which things have been moved up to the end of each chunk, by the gripper or without it."""
    place = chunks.place
    moved = np.linalg.norm(place - place[:, :1], axis=-1) > AWAY * chunks.width
    if (gripper := chunks.gripper) is not None:
        low = _steps(chunks, gripper.is_low)
        moved[:, 1:] |= (_apart(chunks, place[:, :-1])[0] < NEAR * chunks.width).any(1, where=low)
    return np.maximum.accumulate(moved, axis=1)


def _steps(chunks: Chunks, values: np.ndarray) -> np.ndarray:  # [N, C * length + 1, ...] -> [N, length, C, 1, ...]
    """The values in the frames of each chunk, its first one not among them."""
    n, count = len(values), chunks.things.area.shape[1] - 1
    return values[:, 1:].reshape(n, count, chunks.length, 1, *values.shape[2:]).swapaxes(1, 2)


def _apart(chunks: Chunks, *places: np.ndarray) -> list[np.ndarray]:  # [N, C, D, 2] -> [N, length, C, D] px
    """How far the fingertips are from places, in every frame of each chunk."""
    tips = _steps(chunks, chunks.gripper.pixel)
    return [np.linalg.norm(tips - place[:, None], axis=-1) for place in places]


def find_events(chunks: Chunks) -> dict[str, np.ndarray]:  # [N, C, D] bool
    """What happened to things in each chunk that cannot happen; nothing is known without a gripper."""
    if chunks.gripper is None:
        return {}
    place, share, gripper = chunks.place, chunks.share, chunks.gripper
    old, new, least = place[:, :-1], place[:, 1:], np.minimum(share[:, :-1], share[:, 1:])
    way = np.linalg.norm(new - old, axis=-1)
    parts = chunks.things.area[:, 1:] >= PLACE * chunks.whole[..., None]
    ways = np.linalg.norm(chunks.things.centre[:, 1:] - old[..., None, :], axis=-1)
    left = (np.where(parts, ways, np.inf) > AWAY * chunks.width).all(-1)  # no part of it is where it was
    from_old, from_new = _apart(chunks, old, new)
    alone = np.minimum(from_old, from_new).min(1) >= NEAR * chunks.width
    size = np.sqrt(chunks.whole)
    can_push = _steps(chunks, (gripper.height < TABLE_M) & (gripper.opening < CLOSED))
    stride = np.linalg.norm(np.diff(gripper.pixel, axis=1, prepend=gripper.pixel[:, :1]), axis=-1)
    along = (_steps(chunks, stride) * can_push).sum(1)  # [N, C, 1] px along the table
    through = (can_push & (from_old < 0.25 * size[:, None])).any(1) & (along > 0.5 * size)
    return {
        "teleported": (least >= SHRUNK) & left & alone,
        "passed_through": (least >= FADED) & (way < 0.5 * AWAY * chunks.width) & through,
    }


def late_frames(horizon: int) -> list[int]:
    """The three frames in which the thing that the task moves is looked at: 20, 30 and 39 of 40 actions."""
    return [max(1, frame) for frame in (horizon // 2, 3 * horizon // 4, horizon - 1)]


def aimed_thing(
    things: Things,  # of the first frame and some later ones
) -> dict[str, float | int | None]:
    """Of the things that the tasks move, in all frames but the first: the share of frames in which such a thing is
    below 60 % and below 35 % of its first area, and stands in two places.

    `n` counts those frames; a share is None where there are none.
    """
    rows = np.flatnonzero(things.aim >= 0)
    area, centre = things.area[rows, :, things.aim[rows]], things.centre[rows, :, things.aim[rows]]
    whole = area[:, :1].sum(-1)
    use = whole[:, 0] >= LEAST_PX
    area, centre, whole = area[use, 1:], centre[use, 1:], whole[use]
    share = area.sum(-1) / whole
    found = {"below_60": share < SHRUNK, "below_35": share < FADED, "two_places": doubled(area, centre, whole)}
    return {name: float(state.mean()) if state.size else None for name, state in found.items()} | {"n": share.size}
