"""One recorded episode and what makes it well formed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldenv.errors import UserError

MAX_TEXT_BYTES = 10_000  # an object in HDF5 has 64 KiB for all that is said of it
SOURCES = ("expert", "policy")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, successful or not. Raises UserError if an entry is not as written here or not finite."""

    frames: np.ndarray  # [T + 1, V, H, W, 3] uint8, frames[t] is seen before actions[t]
    proprio: np.ndarray  # [T + 1, P] float32
    actions: np.ndarray  # [T, A] float32 in [-1, 1], T >= 1
    success: np.ndarray  # [T] bool, after actions[t]
    # [V, 3, 4] float32, world point (m) -> homogeneous pixel; [T + 1, V, 3, 4], one for each frame, where a camera
    # moves; None: not calibrated
    camera: np.ndarray | None
    views: tuple[str, ...]  # [V] names of the views
    instruction: str
    task: str
    start: int  # start-state number within the task and split
    split: str
    source: str  # "expert" or "policy"

    def __post_init__(self) -> None:
        self.check()

    @property
    def first_camera(self) -> np.ndarray | None:  # [V, 3, 4] float32
        """The cameras of the first frame."""
        return self.camera[0] if np.ndim(self.camera) == 4 else self.camera

    def check(self) -> None:
        """Raise UserError if an entry is not as written here, or no longer."""
        check_steps(self.proprio, self.actions, self.success, self.camera, self.views)
        size = self.frames.shape[2:4] if np.ndim(self.frames) == 5 else ("H", "W")
        _check_array("frames", self.frames, np.uint8, (len(self.actions) + 1, len(self.views), *size, 3))
        if 0 in size:
            raise UserError(f"frames is {_described(self.frames)}: images should have at least one pixel")
        check_labels(self.instruction, self.task, self.start, self.split, self.source)


def check_steps(proprio: Any, actions: Any, success: Any, camera: Any, views: Any) -> None:
    """Raise UserError unless these are the entries of one Trajectory."""
    steps = len(actions) if np.ndim(actions) else 0
    if steps < 1:
        raise UserError(f"actions is {_described(actions)}: a trajectory has at least one action")
    _check_array("actions", actions, np.float32, (steps, _last(actions, "A")))
    _check_array("proprio", proprio, np.float32, (steps + 1, _last(proprio, "P")))
    _check_array("success", success, np.bool_, (steps,))
    if np.abs(actions).max() > 1:
        raise UserError(f"actions reach {np.abs(actions).max():g}: they should be in [-1, 1]; rescale")
    if not isinstance(views, tuple) or not views or len(set(views)) < len(views):
        raise UserError(f"views is {views!r:.200}: it should be a tuple of names, at least one and none twice")
    for name in views:
        if not isinstance(name, str) or not name or "/" in name or not _is_storable(name):
            raise UserError(f"views has the name {name!r:.200}: a name is a string that is not empty and has no '/'")
    if len(views) * max(len(name.encode()) for name in views) > MAX_TEXT_BYTES:
        raise UserError(f"views has {len(views)} names that are too long: {MAX_TEXT_BYTES} bytes is the most for all")
    if camera is not None:
        moving = (steps + 1,) if np.ndim(camera) == 4 else ()
        _check_array("camera", camera, np.float32, (*moving, len(views), 3, 4))


def check_labels(instruction: Any, task: Any, start: Any, split: Any, source: Any) -> None:
    """Raise UserError unless these are the labels of a Trajectory."""
    for name, value in (("instruction", instruction), ("task", task), ("split", split)):
        check_text(name, value)
    if not isinstance(source, str) or source not in SOURCES:
        raise UserError(f"source is {source!r:.200}: it should be one of {', '.join(SOURCES)}")
    if isinstance(start, bool) or not isinstance(start, int | np.integer) or not -(2**63) <= start < 2**63:
        raise UserError(f"start is {start!r:.100}: it should be an integer of 64 bits")


def check_alike(names: Sequence[str], parts: Sequence[tuple]) -> None:
    """Raise UserError unless all (proprio, actions, camera, views, picture size) could be in one batch."""
    if not parts:
        raise UserError("clips are made of at least one trajectory, but there are none")
    about = [
        {
            "views": views,
            "picture size": tuple(size),
            "length of proprio": proprio.shape[1],
            "length of an action": actions.shape[1],
            "whether a camera is given": camera is not None,
        }
        for proprio, actions, camera, views, size in parts
    ]
    for name, found in zip(names, about, strict=True):
        for what, value in found.items():
            if value != about[0][what]:
                raise UserError(
                    f"{name} differs from {names[0]} in {what}: {value}, not {about[0][what]}; "
                    "trajectories that are used together should agree"
                )


def check_text(name: str, value: Any) -> None:
    """Raise UserError unless it is a text that a file can hold."""
    if not isinstance(value, str) or not value.strip() or not _is_storable(value):
        raise UserError(f"{name} is {value!r:.200}: it should be a string that is not empty, without NUL characters")
    if (size := len(value.encode())) > MAX_TEXT_BYTES:
        raise UserError(f"{name} has {size} bytes: {MAX_TEXT_BYTES} is the most")


def _is_storable(text: str) -> bool:
    return "\0" not in text and text.encode(errors="replace").decode() == text


def _last(array: Any, letter: str) -> int | str:
    is_sized = np.ndim(array) == 2 and array.shape[1] > 0
    return array.shape[1] if is_sized else letter


def _described(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"


def _check_array(name: str, array: Any, dtype: type, shape: tuple) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        expected = f"{np.dtype(dtype)} [{', '.join(map(str, shape))}]"
        raise UserError(f"{name} is {_described(array)}: it should be a numpy array, {expected}")
    if dtype is np.float32 and not np.isfinite(array).all():
        first = int(np.argmin(np.isfinite(array).all(axis=tuple(range(1, array.ndim)))))
        raise UserError(f"{name} has values that are not finite (first at row {first})")
