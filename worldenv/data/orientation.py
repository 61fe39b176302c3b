"""Which way up pictures are stored, and whether that agrees with the camera that took them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError, nearest

# As the camera projects; rows reversed (OpenGL, LIBERO's HDF5 files); columns reversed (an OpenGL picture turned by 180
# degrees: LIBERO's copies for LeRobot and RLDS); both (a camera that hangs upside down).
Orientation = Literal["upright", "flipped", "turned", "upside-down"]
STEPS = {"upright": (1, 1), "flipped": (-1, 1), "turned": (1, -1), "upside-down": (-1, -1)}  # of rows, of columns
NAMES = {steps: name for name, steps in STEPS.items()}

NOISE = 16  # of 255, the least change of a pixel that counts: more than a video codec's
LEAST_CHANGES = 12  # frames
LEAST_SPREAD = 0.015  # of the picture's height, by which the gripper should move
LEAST_CORRELATION = 0.35


def check_orientation(orientation: str) -> None:
    """Raise UserError for an unknown name."""
    if not isinstance(orientation, str) or orientation not in STEPS:
        raise UserError(f"orientation is {orientation!r:.100}{nearest(str(orientation), get_args(Orientation))}")


def upright(
    frames: np.ndarray,  # [..., H, W, 3], stored in that orientation
    orientation: Orientation,
) -> np.ndarray:  # [..., H, W, 3], a view
    """The pictures as the camera projects. Each orientation is its own inverse."""
    rows, columns = STEPS[orientation]
    return frames[..., ::rows, ::columns, :]


@dataclass(frozen=True)
class Agreement:
    """How what changes in the pictures follows the gripper, where the camera projects it."""

    orientation: Orientation | None  # in which the pictures are; None: too little moved to tell
    across: float  # correlation of columns: 1 if they follow, -1 if they are reversed
    down: float  # of rows
    changes: int  # pairs of frames that were compared


def agreement(trajectories: Iterable[Trajectory], view: int = 0) -> Agreement:
    """Compare pictures and camera. The first three numbers of proprioception are the gripper's x, y, z (m, world).

    For each pair of frames, the middle of the pixels that change is compared with the pixel of the gripper. Arm and
    gripper go the same way, so the two are correlated, however far apart. Raises UserError if a camera is missing.
    """
    seen, true, height = [], [], 1
    for trajectory in trajectories:
        if trajectory.camera is None:
            raise UserError("the trajectories have no camera: an orientation can only be checked with one")
        if trajectory.proprio.shape[1] < 3:
            raise UserError("proprio has fewer than 3 numbers: the position of the gripper (x, y, z) is not in it")
        height = trajectory.frames.shape[2]
        middle = _middle_of_changes(trajectory.frames[:, view])
        pixel = _pixels(trajectory.proprio[:, :3], trajectory.camera[..., view, :, :])
        pixel = (pixel[1:] + pixel[:-1]) / 2
        known = np.isfinite(middle).all(1) & np.isfinite(pixel).all(1)
        if known.any():
            seen.append(middle[known] - middle[known].mean(0))
            true.append(pixel[known] - pixel[known].mean(0))
    if not seen:
        return Agreement(None, 0.0, 0.0, 0)
    seen, true = np.concatenate(seen), np.concatenate(true)
    across, down = (_correlation(seen[:, i], true[:, i], LEAST_SPREAD * height) for i in (0, 1))
    is_known = len(seen) >= LEAST_CHANGES and min(abs(across), abs(down)) >= LEAST_CORRELATION
    found = NAMES[(1 if down > 0 else -1, 1 if across > 0 else -1)] if is_known else None
    return Agreement(found, across, down, len(seen))


def check_upright(trajectories: Iterable[Trajectory], view: int = 0, read_as: Orientation = "upright") -> Agreement:
    """Raise UserError if the pictures, which were read as `read_as`, are not upright against their camera."""
    found = agreement(trajectories, view)
    if found.orientation not in (None, "upright"):
        rows, columns = (a * b for a, b in zip(STEPS[found.orientation], STEPS[read_as], strict=True))
        raise UserError(
            f"the pictures do not agree with the camera: what moves in them follows the gripper with a correlation of "
            f"{found.across:.2f} across and {found.down:.2f} down; read them with the orientation "
            f"{NAMES[(rows, columns)]!r}, or correct the camera"
        )
    return found


def _middle_of_changes(frames: np.ndarray) -> np.ndarray:  # [T + 1, H, W, 3] uint8 -> [T, 2] x, y (pixels) or NaN
    middle = np.full((len(frames) - 1, 2), np.nan)
    rows, columns = (np.arange(size) + 0.5 for size in frames.shape[1:3])
    for step in range(len(middle)):
        change = np.abs(frames[step + 1].astype(np.int16) - frames[step]).max(axis=2)
        change[change < NOISE] = 0
        if total := int(change.sum()):
            middle[step] = change.sum(0) @ columns / total, change.sum(1) @ rows / total
    return middle


def _pixels(points: np.ndarray, camera: np.ndarray) -> np.ndarray:  # [T, 3] m, [3, 4] or [T, 3, 4] -> [T, 2] or NaN
    camera = camera.astype(np.float64)
    seen = (camera[..., :3] @ points.astype(np.float64)[..., None])[..., 0] + camera[..., 3]
    return seen[:, :2] / np.where(seen[:, 2:] > 0, seen[:, 2:], np.nan)


def _correlation(one: np.ndarray, other: np.ndarray, least: float) -> float:
    """0 where the second moves less than `least`, or the first not at all."""
    spread = one.std() * other.std()
    return float((one * other).mean() / spread) if other.std() >= least and spread > 0 else 0.0
