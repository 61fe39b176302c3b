"""What suites share that MuJoCo simulates and draws without a screen: what lacks, cameras, what an action leads to.

It imports neither torch nor MuJoCo.
"""

import ctypes.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from worldenv.errors import UserError

MUJOCO = "3.3.0"
LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}  # what draws without a screen, by the value of MUJOCO_GL


class Moment(NamedTuple):
    """What follows from a request: whether the task was done after each action, and what is there to see at the end."""

    done: np.ndarray  # [n] bool
    frames: np.ndarray | None  # [V, H, W, 3] uint8; None: nobody looks
    proprio: np.ndarray  # [P] float32
    camera: np.ndarray  # [V, 3, 4] float32


class Trace(NamedTuple):
    """D true things of an episode before its first action and after each, in a scene with Q coordinates (`qpos`)."""

    proprio: np.ndarray  # [T + 1, P] float32
    qpos: np.ndarray  # [T + 1, Q] float64, of the scene
    centre: np.ndarray  # [T + 1, D, 3] float32 m
    held: np.ndarray  # [T + 1] int64, the thing that the gripper holds; -1: none


def version_of(distribution: str) -> str:
    """The version of an installed package; empty if it is not there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def drawing_library(who: str) -> str:
    """The library that draws, as MUJOCO_GL and PYOPENGL_PLATFORM are to name it before MuJoCo is imported.

    Raises UserError, one line, if MUJOCO_GL names another one or the library is not there.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked and asked not in LIBRARIES:
        raise UserError(f"MUJOCO_GL is {asked!r}; {who} is drawn without a screen, by {' or '.join(LIBRARIES)}")
    for name in [asked] if asked else LIBRARIES:
        if ctypes.util.find_library(LIBRARIES[name]):
            return name
    lacks = "no library here draws without a screen"
    if asked:
        lacks = f"MUJOCO_GL is {asked}, but its library is not installed"
    packages = "libegl1 libegl-mesa0 libgl1-mesa-dri" if asked == "egl" else "libosmesa6"
    raise UserError(f"{lacks}: apt-get install -y --no-install-recommends {packages}")


def camera_matrix(
    place: np.ndarray,  # [3] m
    axes: np.ndarray,  # [3, 3], columns: MuJoCo's x right, y up, z backwards
    fovy_deg: float,
    size: int,  # pixels, height = width
    turned: bool = False,  # the picture is turned by 180 degrees
) -> np.ndarray:  # [3, 4] float64
    """World point (m) -> homogeneous pixel of the upright picture."""
    focal = 0.5 * size / np.tan(np.deg2rad(fovy_deg) / 2)
    intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    rotation = (axes * ([-1, 1, -1] if turned else [1, -1, -1])).T
    return intrinsics @ np.c_[rotation, -rotation @ place]


def shrunk(picture: np.ndarray, k: int) -> np.ndarray:  # [k H, k W, C] -> [H, W, C] uint8
    """Means of k x k pixels."""
    if k == 1:
        return picture
    height, width = picture.shape[0] // k, picture.shape[1] // k
    return picture.reshape(height, k, width, k, -1).mean((1, 3)).round().astype(np.uint8)
