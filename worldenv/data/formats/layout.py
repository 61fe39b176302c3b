"""The layout of our own files: that of LIBERO and robomimic, with the frame after the last action added.

    /data                     num_demos, total, env_args, problem_info, worldenv_format
    /data/demo_<i>            num_samples, language_instruction, task, start, split, source, views, crc32
        actions [T, A] f32    rewards [T] u8 (success after the action)    dones [T] u8
        camera [V, 3, 4] f32, or [T + 1, V, 3, 4] where a camera moves
        frames_crc32 [T + 1, V] u32
        obs/                  <view>_rgb [T, H, W, 3] u8, one for each view
                              ee_states [T, 6] f32 and gripper_states [T, 1] f32 if P = 7, else proprio [T, P] f32
        final_obs/            the same, of length 1

obs[t] is what is seen before actions[t]. Only the first num_demos groups count. `camera` is left out where there is no
calibration. Version 1 had one view, agentview, and no camera; a file in which a camera moves is of version 3. crc32
covers everything but the frames, and frames_crc32 has one checksum per frame; older files have none. Text is stored
with a fixed length, because HDF5 2.0 can crash or hang on damaged text of variable length.
"""

import json
import zlib
from typing import Any

import h5py
import numpy as np

from worldenv.data.formats.hdf5 import array, member, text, texts, values, whole_number
from worldenv.data.trajectory import Trajectory

FORMAT_VERSION, MOVING = 2, 3  # of a file, and of one in which a camera moves
FRAMES_PER_CHUNK = 16
ONE_VIEW = ("agentview",)  # of version 1
LABELS = ("instruction", "task", "start", "split", "source")

Steps = dict[str, Any]  # proprio, actions, success, camera and views, as in Trajectory


def write_header(file: h5py.File) -> h5py.Group:
    """Begin a file; returns /data."""
    data = file.create_group("data")
    data.attrs.update(num_demos=np.int64(0), total=np.int64(0), worldenv_format=np.int64(FORMAT_VERSION))
    for name in ("env_args", "problem_info"):
        _write_texts(data, name, "{}")
    return data


def write_demo(data: h5py.Group, trajectory: Trajectory) -> None:
    """Add a trajectory; it counts once everything is written."""
    count, total, steps = int(data.attrs["num_demos"]), int(data.attrs["total"]), len(trajectory.actions)
    demo, done = data.create_group(f"demo_{count}"), np.zeros(steps, np.uint8)
    done[-1] = 1
    demo["actions"] = trajectory.actions
    demo["rewards"] = trajectory.success.astype(np.uint8)
    demo["dones"] = done
    if trajectory.camera is not None:
        demo["camera"] = trajectory.camera
        if trajectory.camera.ndim == 4:
            data.attrs.modify("worldenv_format", np.int64(MOVING))
    for name, part in (("obs", slice(0, steps)), ("final_obs", slice(steps, None))):
        _write_observations(demo.create_group(name), trajectory, part)
    checks = np.array([[crc32(picture) for picture in pictures] for pictures in trajectory.frames], np.uint32)
    demo["frames_crc32"] = checks
    labels = {name: getattr(trajectory, name) for name in LABELS}
    demo.attrs.update(num_samples=np.int64(steps), start=np.int64(trajectory.start))
    for name in ("task", "split", "source"):
        _write_texts(demo, name, labels[name])
    _write_texts(demo, "language_instruction", trajectory.instruction)
    _write_texts(demo, "views", list(trajectory.views))
    demo.attrs["crc32"] = np.uint32(_checksum(vars(trajectory), labels, checks))
    if not count:
        info = json.dumps({"language_instruction": trajectory.instruction}, ensure_ascii=False)
        _write_texts(data, "problem_info", info)
    count_demos(data, count + 1, total + steps)


def count_demos(data: h5py.Group, count: int, total: int) -> None:
    """Set how many trajectories count, and their steps."""
    data.attrs.modify("total", np.int64(total))
    data.attrs.modify("num_demos", np.int64(count))


def read_own(demo: h5py.Group) -> Steps:
    """The arrays of a trajectory but for its frames. Raises ValueError if they are not as they should be."""
    actions = values(demo, "actions", "float [T, A]", None)
    steps = len(actions)
    if not steps:
        raise ValueError("is empty: it has no action that leads from one frame to the next")
    proprio = []
    for name, length in (("obs", "T"), ("final_obs", "1")):
        if member(demo, f"{name}/proprio") is not None:
            proprio.append(values(demo, f"{name}/proprio", f"float [{length}, P]", steps))
        else:
            pose = values(demo, f"{name}/ee_states", f"float [{length}, 6]", steps)
            gripper = values(demo, f"{name}/gripper_states", f"float [{length}, 1]", steps)
            proprio.append(np.concatenate([pose, gripper], axis=1))
    views = tuple(texts(demo, "views")) if "views" in demo.attrs else ONE_VIEW
    camera = None
    if (stored := member(demo, "camera")) is not None:
        moving = f"{steps + 1}, " if len(getattr(stored, "shape", None) or ()) == 4 else ""
        camera = values(demo, "camera", f"float [{moving}{len(views)}, 3, 4]", steps).astype(np.float32)
    return {
        "proprio": np.concatenate(proprio).astype(np.float32),
        "actions": actions.astype(np.float32),
        "success": values(demo, "rewards", "uint8 [T]", steps) > 0,
        "camera": camera,
        "views": views,
    }


def read_labels(demo: h5py.Group) -> dict[str, Any]:
    """Instruction, task, start, split and source."""
    found = {name: text(demo, name) for name in ("task", "split", "source")}
    return {"instruction": text(demo, "language_instruction"), "start": whole_number(demo, "start"), **found}


def read_checks(demo: h5py.Group, steps: Steps, labels: dict[str, Any]) -> np.ndarray | None:
    """The checksums of the frames [T + 1, V], None in an older file. Raises ValueError if anything else is damaged."""
    if "crc32" not in demo.attrs:
        return None
    rows = f"{len(steps['actions']) + 1}, {len(steps['views'])}"
    checks = array(demo, "frames_crc32", f"number [{rows}]", None)[()]
    if _checksum(steps, labels, checks) != whole_number(demo, "crc32"):
        raise ValueError("is damaged: its checksum differs (after a change on purpose, delete its attribute crc32)")
    return checks


def crc32(picture: np.ndarray) -> int:
    """The checksum of one frame of one view [H, W, 3]."""
    return zlib.crc32(np.ascontiguousarray(picture))


def _checksum(steps: Steps, labels: dict[str, Any], checks: np.ndarray) -> int:
    labels = [steps["views"], *(labels[name] for name in LABELS if name != "start"), int(labels["start"])]
    crc = zlib.crc32(json.dumps(labels).encode())
    for name, dtype in (("proprio", "<f4"), ("actions", "<f4"), ("success", "u1"), ("camera", "<f4")):
        if (found := steps[name]) is not None:
            crc = zlib.crc32(str(found.shape).encode() + found.astype(dtype).tobytes(), crc)
    return zlib.crc32(checks.astype("<u4").tobytes(), crc)


def _write_observations(group: h5py.Group, trajectory: Trajectory, part: slice) -> None:
    proprio = trajectory.proprio[part]
    for view, frames in zip(trajectory.views, np.moveaxis(trajectory.frames[part], 1, 0), strict=True):
        chunk = (min(FRAMES_PER_CHUNK, len(frames)), *frames.shape[1:])
        # An eighth of the size of lzf on rendered frames, and no slower; a shuffle of bytes does nothing to uint8.
        group.create_dataset(f"{view}_rgb", data=frames, chunks=chunk, compression="gzip", compression_opts=1)
    if proprio.shape[1] == 7:
        group["ee_states"], group["gripper_states"] = proprio[:, :6], proprio[:, 6:]
    else:
        group["proprio"] = proprio


def _write_texts(owner: h5py.HLObject, name: str, value: str | list[str]) -> None:
    encoded = value.encode() if isinstance(value, str) else [text.encode() for text in value]
    size = len(encoded) if isinstance(value, str) else max(map(len, encoded))
    owner.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", size))
