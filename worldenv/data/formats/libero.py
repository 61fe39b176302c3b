"""Trajectories as a file of LIBERO's own layout, as its create_dataset.py leaves demonstrations.

    /data                     env_name, problem_info, env_args, macros_image_convention, num_demos, total
    /data/demo_<i>            num_samples, init_state (if there are states)
        actions [T, A] f64    rewards [T] u8    dones [T] u8    states [T, S] f64    robot_states [T, 9] f64
        obs/                  <view>_rgb [T, H, W, 3] u8, upside down as OpenGL renders
                              ee_states [T, 6], ee_pos, ee_ori [T, 3], gripper_states [T, 2], joint_states [T, 7] f64
        camera/               <view> [3, 4] f32, [T, 3, 4] where one moves: ours, which LIBERO does not read

Row t has what was seen after actions[t], but the state before it. So the frame before the first action is not in the
file, and the reader returns the trajectory from its second frame on: all else comes back bit for bit. Split and
source are not in the layout. Our own layout (see layout) loses nothing.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from worldenv.data.formats.foreign import CONVENTION, CONVENTIONS, GRIPPER_OPENING_M
from worldenv.data.formats.layout import FRAMES_PER_CHUNK
from worldenv.data.orientation import upright
from worldenv.data.paths import as_path
from worldenv.data.trajectory import Trajectory, check_alike
from worldenv.errors import UserError
from worldenv.files import replace_whole

NUMBERS = 7  # of proprioception: a pose and the opening of the gripper
SUFFIX = "_demo.hdf5"  # from which readers take the task
WRITTEN = ("actions", "rewards", "dones", "num_samples", "init_state")
Extra = Mapping[str, np.ndarray | str]


def write_libero(
    path: str | Path,  # ends in _demo.hdf5
    trajectories: Iterable[Trajectory],
    extras: Iterable[Extra] | None = None,
    about: Mapping[str, str] | None = None,
    convention: Literal["opengl", "opencv"] = "opengl",
) -> int:
    """Write the file, whole or not at all; returns the number of demonstrations.

    `extras` has more for each trajectory: data sets of T rows under their name ("states", "robot_states",
    "obs/joint_states"), and texts ("model_file"), which become attributes. LIBERO's own training needs
    obs/joint_states, a replay in the simulator needs states. `about` has attributes of /data (bddl_file_name, ...).

    Raises UserError if there are no trajectories, if they are not of one instruction, alike and at least two steps
    long, if proprioception is not pose (m, axis-angle) and opening, or if the file cannot be written.
    """
    path = as_path(path)
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UserError(f"{path}: a file of LIBERO is called <task>{SUFFIX}; readers take the task from its name")
    if convention not in CONVENTIONS:
        raise UserError(f"convention is {convention!r:.50}; it should be {' or '.join(CONVENTIONS)}")
    count = 0

    def write(made: Path) -> None:
        nonlocal count
        with h5py.File(made, "w", libver=("earliest", "v108")) as file:
            count = _write_all(file, path, trajectories, extras, dict(about or {}), convention)

    replace_whole(path, write)
    return count


def _write_all(
    file: h5py.File,
    path: Path,
    trajectories: Iterable[Trajectory],
    extras: Iterable[Extra] | None,
    about: dict[str, str],
    convention: str,
) -> int:
    data, first, count, total = file.create_group("data"), None, 0, 0
    more = None if extras is None else iter(extras)
    for trajectory in trajectories:
        first = first or trajectory
        _check_fits(first, trajectory, count)
        if (extra := {} if more is None else next(more, None)) is None:
            raise UserError(f"extras ends before trajectory {count}: there should be one for each")
        _write_demo(data.create_group(f"demo_{count}"), trajectory, extra, convention)
        count, total = count + 1, total + len(trajectory.actions)
    if first is None:
        raise UserError("there are no trajectories to write")
    task = path.name.removesuffix(SUFFIX)
    named = {"env_name": task, "problem_info": {"problem_name": task, "language_instruction": first.instruction}}
    named["env_args"] = {"type": 1, "env_name": task, "env_kwargs": {}}  # 1: robosuite
    texts = {
        name: text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for name, text in named.items()
    }
    data.attrs.update({**texts, **about, CONVENTION: convention})
    data.attrs.update(num_demos=np.int64(count), total=np.int64(total))
    return count


def _check_fits(first: Trajectory, trajectory: Trajectory, number: int) -> None:
    if not isinstance(trajectory, Trajectory):
        raise UserError(f"trajectory {number} is a {type(trajectory).__name__}; it should be a Trajectory")
    trajectory.check()
    pair = (first, trajectory)
    names = ("trajectory 0", f"trajectory {number}")
    check_alike(names, [(t.proprio, t.actions, t.camera, t.views, t.frames.shape[2:4]) for t in pair])
    if trajectory.instruction != first.instruction:
        raise UserError(
            f"trajectory {number} has another instruction than trajectory 0: {trajectory.instruction!r:.100}, not "
            f"{first.instruction!r:.100}; a file of LIBERO is of one task: write one for each"
        )
    if trajectory.proprio.shape[1] != NUMBERS:
        raise UserError(
            f"proprio has {trajectory.proprio.shape[1]} numbers; the layout of LIBERO has {NUMBERS}: x, y, z (m), "
            "axis-angle (rad), opening"
        )
    if len(trajectory.actions) < 2:
        raise UserError(f"trajectory {number} has one action; in the layout of LIBERO, two are the least")


def _write_demo(demo: h5py.Group, trajectory: Trajectory, extra: Extra, convention: str) -> None:
    steps, proprio = len(trajectory.actions), trajectory.proprio[1:].astype(np.float64)
    finger = proprio[:, 6:] * (GRIPPER_OPENING_M / 2)
    done = np.zeros(steps, np.uint8)
    done[-1] = 1
    arrays = {
        "actions": trajectory.actions.astype(np.float64),
        "rewards": trajectory.success.astype(np.uint8),
        "dones": done,
        "obs/ee_states": proprio[:, :6],
        "obs/ee_pos": proprio[:, :3],
        "obs/ee_ori": proprio[:, 3:6],
        "obs/gripper_states": np.concatenate([finger, -finger], axis=1),
    }
    for key, value in extra.items():
        if key in arrays or key in WRITTEN or key.endswith("_rgb") or key.startswith("camera"):
            raise UserError(f"{key} of extras is written from the trajectory: leave it out")
        if isinstance(value, str):
            demo.attrs[key] = value
        else:
            arrays[key] = _checked(key, value, steps)
    for key, value in arrays.items():
        demo[key] = value
    for view, frames in zip(trajectory.views, np.moveaxis(trajectory.frames[1:], 1, 0), strict=True):
        stored = upright(frames, CONVENTIONS[convention])  # an orientation is its own inverse
        chunk = (min(FRAMES_PER_CHUNK, steps), *frames.shape[1:])
        demo.create_dataset(f"obs/{view}_rgb", data=stored, chunks=chunk, compression="gzip", compression_opts=1)
    if trajectory.camera is not None:
        camera = trajectory.camera if trajectory.camera.ndim == 3 else trajectory.camera[1:]
        for i, view in enumerate(trajectory.views):
            demo[f"camera/{view}"] = camera[..., i, :, :]
    demo.attrs["num_samples"] = np.int64(steps)
    if "states" in arrays:
        demo.attrs["init_state"] = arrays["states"][0]


def _checked(key: str, value: Any, steps: int) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim < 1 or len(value) != steps:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise UserError(f"{key} of extras is {found}; it should be numbers with {steps} rows, or a text")
    if not np.isfinite(value).all():
        raise UserError(f"{key} of extras has values that are not finite")
    return value
