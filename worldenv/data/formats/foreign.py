"""Files of LIBERO, of those who regenerate it by replay, and of robomimic.

What is read, from the first of these that is there:
    picture        <view>_rgb or <view>_image [T, H, W, 3] u8; robot0_eye_in_hand is the view eye_in_hand
    pose           ee_states [T, 6]; ee_pos, ee_ori [T, 3]; robot0_eef_pos [T, 3], robot0_eef_quat [T, 4] (x y z w)
    gripper        gripper_states or robot0_gripper_qpos [T, 2]
    camera         camera/<view> [3, 4], or [T, 3, 4], if it is there for all views: what this package writes has it
    instruction    language_instruction of the file's problem_info; lang of the demonstration's ep_meta; the name of the
                   file, if it ends in _demo
    task           the name of the file, if it ends in _demo; env_name of env_args; the name of the file

A file with num_demos is LIBERO's own. There, obs[t] was taken after actions[t], so what leads from obs[t] to obs[t + 1]
is actions[t + 1], and the first action is dropped. In all other files obs[t] was taken before actions[t].
Where there is next_obs, its last entry follows the last action. Where there is none, the last action is dropped, and an
episode has one action less than the file. In regenerated files only the last action has a reward, so all frames that
remain come before the success.
Pictures are upside down where the file says so (macros_image_convention is opengl): those are returned upright. All
others are returned as stored, unless the reader is told their orientation.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldenv.data.formats.hdf5 import keys, listed, member, names, text, values
from worldenv.data.formats.layout import Steps
from worldenv.data.orientation import Orientation

FIRST_VIEWS = ("agentview", "eye_in_hand")
PICTURE = re.compile(r"(?:robot0_)?(.+)_(?:rgb|image)")
GRIPPER_OPENING_M = 0.08  # distance of the Panda gripper's fingers when it is open
POSES = (
    (("ee_states", 6),),
    (("ee_pos", 3), ("ee_ori", 3)),
    (("robot0_eef_pos", 3), ("robot0_eef_quat", 4)),
)
CONVENTION = "macros_image_convention"
CONVENTIONS: dict[str, Orientation] = {"opengl": "flipped", "opencv": "upright"}
GRIPPERS = ((("gripper_states", 2),), (("robot0_gripper_qpos", 2),))


@dataclass(frozen=True)
class File:
    """What a file says of all its trajectories."""

    is_seen_after: bool  # obs[t] was taken after actions[t]
    orientation: Orientation  # of the stored pictures
    instruction: str | None
    task: str
    valid: frozenset[str]  # names of the trajectories that are kept for validation

    @classmethod
    def of(cls, path: Path, file: h5py.File, data: h5py.Group, instruction: str | None) -> "File":
        """`instruction` takes the place of the file's. Raises ValueError."""
        is_named = path.stem.endswith("_demo")
        task = path.stem.removesuffix("_demo")
        found = _text_of(data, "problem_info", "language_instruction")
        if found is None and is_named:
            # LIBERO names its files so: KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5
            found = re.sub(r"^.*SCENE\d*_", "", task).replace("_", " ")
        if not is_named:
            task = _text_of(data, "env_args", "env_name") or task
        kept = frozenset(names(file, "mask/valid"))
        return cls("num_demos" in data.attrs, _orientation(data), instruction or found, task, kept)

    def labels(self, demo: h5py.Group, name: str, index: int) -> dict[str, Any]:
        """The labels of the trajectory of that name and number. Raises ValueError if there is no instruction."""
        instruction = self.instruction or _text_of(demo, "ep_meta", "lang")
        if instruction is None:
            raise ValueError("has no instruction: give it, TrajectoryReader(path, instruction='...')")
        split = "valid" if name in self.valid else "train"
        return {"instruction": instruction, "task": self.task, "start": index, "split": split, "source": "expert"}


def read_foreign(demo: h5py.Group, file: File) -> tuple[Steps, tuple[str, ...], tuple[str, int] | None]:
    """The arrays but for the frames, the keys of the pictures, and group and row of the last ones (None: in obs)."""
    actions = values(demo, "actions", "float [T, A]", None)
    rows, views = len(actions), _views(demo)
    has_next = not file.is_seen_after and member(demo, "next_obs") is not None
    if rows < 2 - has_next:
        raise ValueError("is empty: it has no action that leads from one frame to the next")
    proprio, reward = _proprio(demo, "obs", rows), values(demo, "rewards", "number [T]", rows)
    if not np.isin(reward, (0, 1)).all():
        row = int(np.argmin(np.isin(reward, (0, 1))))
        raise ValueError(
            f"rewards is {reward[row]} at row {row}: success is told by rewards of 0 and 1, not by shaped ones"
        )
    if has_next:
        proprio = np.concatenate([proprio, _proprio(demo, "next_obs", rows)[-1:]])
    else:
        kept = slice(1, None) if file.is_seen_after else slice(-1)
        actions, reward = actions[kept], reward[kept]
    steps = {
        "proprio": proprio,
        "actions": actions.astype(np.float32),
        "success": reward > 0,
        "camera": _camera(demo, views, rows),
        "views": tuple(views),
    }
    return steps, tuple(views.values()), ("next_obs", rows - 1) if has_next else None


def _orientation(data: h5py.Group) -> Orientation:
    if CONVENTION not in data.attrs:
        return "upright"
    if (said := text(data, CONVENTION)) not in CONVENTIONS:
        raise ValueError(f"the attribute {CONVENTION} is {said!r:.50}; known are {listed(CONVENTIONS)}")
    return CONVENTIONS[said]


def axis_angle(
    quaternion: np.ndarray,  # [T, 4] x y z w, of length 1
) -> np.ndarray:  # [T, 3] axis times angle (rad, 0 to 2 pi), as LIBERO's ee_states hold it
    """Rotations in the other form. Raises ValueError if a quaternion is not of length 1."""
    length = np.linalg.norm(quaternion, axis=1)
    if (wrong := np.abs(length - 1) > 0.01).any():
        row = int(np.argmax(wrong))
        raise ValueError(f"a quaternion is no rotation: its length is {length[row]:g} at row {row}, not 1")
    sine = np.linalg.norm(quaternion[:, :3], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[:, 3:])
    return quaternion[:, :3] / np.maximum(sine, 1e-12) * angle


def _views(demo: h5py.Group) -> dict[str, str]:
    """The dataset of each view."""
    obs = member(demo, "obs")
    if not isinstance(obs, h5py.Group):
        raise ValueError("the group obs is missing")
    found = {match[1]: key for key in keys(obs) if (match := PICTURE.fullmatch(key))}
    if not found:
        raise ValueError(f"obs has no pictures, <view>_rgb or <view>_image [T, H, W, 3] (found {listed(keys(obs))})")
    order = sorted(found, key=lambda view: (*(view != first for first in FIRST_VIEWS), view))
    return {view: found[view] for view in order}


def _camera(demo: h5py.Group, views: Iterable[str], rows: int) -> np.ndarray | None:  # [V, 3, 4], [T, V, 3, 4] float32
    paths = [f"camera/{view}" for view in views]
    if any(member(demo, path) is None for path in paths):
        return None
    moving = "T, " if any(getattr(member(demo, path), "ndim", 2) == 3 for path in paths) else ""
    with np.errstate(over="ignore"):  # what is not finite is refused later
        cameras = [values(demo, path, f"float [{moving}3, 4]", rows) for path in paths]
        return np.stack(cameras, axis=-3).astype(np.float32)


def _proprio(demo: h5py.Group, group: str, rows: int) -> np.ndarray:  # [T, 7] float32
    *pose, turn = _first(demo, group, POSES, rows)
    if turn.shape[1] == 4:
        turn = axis_angle(turn.astype(np.float64))
    (finger,) = _first(demo, group, GRIPPERS, rows)
    aperture = (np.abs(finger[:, :1] - finger[:, 1:]) / GRIPPER_OPENING_M).clip(0, 1)
    with np.errstate(over="ignore"):  # what is not finite is refused later
        return np.concatenate([*pose, turn, aperture], axis=1).astype(np.float32)


def _first(demo: h5py.Group, group: str, choices: tuple, rows: int) -> list[np.ndarray]:
    if not isinstance(found := member(demo, group), h5py.Group):
        raise ValueError(f"{group} is not a group")
    for parts in choices:
        if all(member(demo, f"{group}/{key}") is not None for key, _ in parts):
            return [values(demo, f"{group}/{key}", f"float [T, {size}]", rows) for key, size in parts]
    wanted = ", or ".join(" and ".join(f"{key} [T, {size}]" for key, size in parts) for parts in choices)
    raise ValueError(f"{group} has not {wanted} (found {listed(keys(found))})")


def _text_of(owner: h5py.HLObject, attribute: str, key: str) -> str | None:
    """A text in an attribute in JSON; None if it is not there. Raises ValueError."""
    if attribute not in owner.attrs:
        return None
    try:
        document = json.loads(text(owner, attribute))
    except json.JSONDecodeError as error:
        raise ValueError(f"the attribute {attribute} is not JSON: {error}") from error
    found = document.get(key) if isinstance(document, dict) else None
    if isinstance(found, list) and all(isinstance(piece, str) for piece in found):
        found = "".join(found)
    return found.strip().strip('"') if isinstance(found, str) and found.strip() else None
