"""Trajectories in HDF5 files: the layout of LIBERO and robomimic, with the frame after the last action added.

    /data                     num_demos, total, env_args, problem_info, worldenv_format
    /data/demo_<i>            num_samples, language_instruction, task, start, split, source, views
        actions [T, A] f32    rewards [T] u8 (success after the action)    dones [T] u8    camera [V, 3, 4] f32
        obs/                  <view>_rgb [T, H, W, 3] u8, one for each view
                              ee_states [T, 6] f32 and gripper_states [T, 1] f32 if P = 7, else proprio [T, P] f32
        final_obs/            the same, of length 1

obs[t] is what is seen before actions[t]. Only the first num_demos groups count. `camera` is left out where there is no
calibration. Version 1 had one view, agentview, and no camera.

LIBERO's own files lack the frame after the last action: that action is dropped, and an episode has one action less than
the file. They were recorded with obs[t] taken after actions[t], as the policies trained on them expect; the reward of
the file at t + 1 is hence the success after actions[t] here. Files made by replaying them ("regenerated") have no
num_demos; their obs[t] was taken before actions[t]. Pictures are returned as stored.
"""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from worldenv.data.formats.hdf5 import TrajectoryFormatError, array, member, named, text, texts, values, whole_number
from worldenv.data.trajectory import Trajectory, check_labels, check_steps

FORMAT_VERSION = 2
FRAMES_PER_CHUNK = 16
CHUNKS_PER_READ = 4  # bounds the memory of one read
ONE_VIEW = ("agentview",)  # of version 1
LIBERO_VIEWS = ("agentview", "eye_in_hand")
GRIPPER_OPENING_M = 0.08  # distance of the Panda gripper's fingers when it is open
FRAMES = "uint8 [T, H, W, 3]"

Kind = Literal["worldenv", "libero", "regenerated"]
Steps = dict[str, Any]  # proprio, actions, success, camera and views, as in Trajectory


@dataclass(frozen=True)
class Demo:
    """Where a trajectory lies, and what is known of it without its arrays."""

    path: Path
    name: str  # of its group in /data
    kind: Kind
    steps: int  # T
    views: tuple[str, ...]
    size: tuple[int, int]  # H, W
    labels: dict[str, Any]  # instruction, task, start, split, source


def write_header(file: h5py.File) -> h5py.Group:
    """Begin a file; returns /data."""
    data = file.create_group("data")
    data.attrs.update(num_demos=np.int64(0), total=np.int64(0), worldenv_format=np.int64(FORMAT_VERSION))
    data.attrs.update(env_args=json.dumps({}), problem_info=json.dumps({}))
    return data


def write_demo(data: h5py.Group, trajectory: Trajectory) -> None:
    """Add a trajectory; it counts once everything is written."""
    count, steps = int(data.attrs["num_demos"]), len(trajectory.actions)
    demo, done = data.create_group(f"demo_{count}"), np.zeros(steps, np.uint8)
    done[-1] = 1
    demo["actions"] = trajectory.actions
    demo["rewards"] = trajectory.success.astype(np.uint8)
    demo["dones"] = done
    if trajectory.camera is not None:
        demo["camera"] = trajectory.camera
    for name, part in (("obs", slice(0, steps)), ("final_obs", slice(steps, None))):
        group, proprio = demo.create_group(name), trajectory.proprio[part]
        for view, frames in zip(trajectory.views, np.moveaxis(trajectory.frames[part], 1, 0), strict=True):
            chunk = (min(FRAMES_PER_CHUNK, len(frames)), *frames.shape[1:])
            # An eighth of the size of lzf on rendered frames, and no slower; a shuffle of bytes does nothing to uint8.
            group.create_dataset(f"{view}_rgb", data=frames, chunks=chunk, compression="gzip", compression_opts=1)
        if proprio.shape[1] == 7:
            group["ee_states"], group["gripper_states"] = proprio[:, :6], proprio[:, 6:]
        else:
            group["proprio"] = proprio
    labels = {name: getattr(trajectory, name) for name in ("task", "split", "source")}
    demo.attrs.update(num_samples=steps, language_instruction=trajectory.instruction, **labels)
    demo.attrs["start"] = np.int64(trajectory.start)
    demo.attrs["views"] = list(trajectory.views)
    if not count:
        data.attrs["problem_info"] = json.dumps({"language_instruction": trajectory.instruction})
    data.attrs.modify("total", np.int64(data.attrs["total"] + steps))
    data.attrs.modify("num_demos", np.int64(count + 1))


def read_file(path: Path, file: h5py.File) -> Iterator[tuple[Demo, Steps]]:
    """All trajectories of a file, but for their frames.

    Raises TrajectoryFormatError naming the file, the group and what is wrong: a dataset that is missing or of another
    shape or dtype, lengths that differ, values that are not finite or lie elsewhere, no trajectories.
    """
    with named(path, "/data"):
        data = _checked_data(path, file)
        kind: Kind = "regenerated" if "num_demos" not in data.attrs else "libero"
        kind = "worldenv" if "worldenv_format" in data.attrs else kind
        names = _counted_names(path, data, kind)
    if not names:
        raise TrajectoryFormatError(f"{path}: /data has no trajectories: the file is empty")
    for index, name in enumerate(names):
        with named(path, f"/data/{name}"):
            demo = member(data, name)
            if not isinstance(demo, h5py.Group):
                raise ValueError("is no group")
            steps = _read_worldenv(demo) if kind == "worldenv" else _read_libero(demo, kind)
            check_steps(**steps)
            size = _frame_size(demo, steps, kind)
            labels = _labels(demo) if kind == "worldenv" else _libero_labels(path, data, index)
            check_labels(**labels)
            found = Demo(path, name, kind, len(steps["actions"]), steps["views"], size, labels)
        yield found, steps


def read_steps(file: h5py.File, demo: Demo) -> Steps:
    """The arrays of a trajectory but for its frames."""
    with named(demo.path, f"/data/{demo.name}"):
        group = file["data"][demo.name]
        return _read_worldenv(group) if demo.kind == "worldenv" else _read_libero(group, demo.kind)


def read_frames(file: h5py.File, demo: Demo, steps: np.ndarray, out: np.ndarray) -> None:
    """The frames of these steps (each once, rising) into `out` [len(steps), V, H, W, 3] uint8.

    One read for each run of steps; a run goes on where the next step lies in the same chunk of the file or in the next.
    """
    with named(demo.path, f"/data/{demo.name}"):
        group, last = file["data"][demo.name], demo.steps if demo.kind == "worldenv" else None
        count = len(steps) - (last is not None and len(steps) > 0 and steps[-1] == last)
        for number, view in enumerate(demo.views):
            frames = group[f"obs/{view}_rgb"]
            for begin, end in _runs(steps[:count], frames.chunks):
                _read_run(frames, steps[begin:end], out[begin:end, number])
            if count < len(steps):
                out[-1, number] = group[f"final_obs/{view}_rgb"][0]


def _read_run(frames: h5py.Dataset, steps: np.ndarray, out: np.ndarray) -> None:
    first, end = steps[0], steps[-1] + 1
    try:
        # Straight into place where that is possible: a whole episode is large.
        if out.flags.c_contiguous and end - first == len(steps):
            frames.read_direct(out, np.s_[first:end])
        else:
            out[...] = frames[first:end][steps - first]
    except OSError:
        # HDF5 reports a lack of memory as damage. If that was it, this says so.
        np.empty(4 * frames.dtype.itemsize * np.prod(frames.chunks or (1,)), np.uint8)
        raise


def _runs(steps: np.ndarray, chunks: tuple[int, ...] | None) -> Iterator[tuple[int, int]]:
    """Where the parts of `steps` begin and end that one read fetches, with no chunk in two of them."""
    chunk = chunks[0] if chunks else 1
    piece = steps // (CHUNKS_PER_READ * (chunk if chunks else FRAMES_PER_CHUNK))
    cuts = np.flatnonzero((np.diff(steps) > chunk) | (np.diff(piece) > 0)) + 1
    bounds = [0, *cuts.tolist(), len(steps)] if len(steps) else [0]
    return zip(bounds, bounds[1:], strict=False)


def _checked_data(path: Path, file: h5py.File) -> h5py.Group:
    data = member(file, "data")
    if not isinstance(data, h5py.Group):
        found = ", ".join(sorted(file)) or "nothing"
        raise TrajectoryFormatError(f"{path}: /data is missing (found {found}): not a LIBERO or robomimic file")
    if "worldenv_format" in data.attrs:
        version = whole_number(data, "worldenv_format")
        if not 1 <= version <= FORMAT_VERSION:
            raise TrajectoryFormatError(
                f"{path}: /data has worldenv_format {version}, this version reads 1 to {FORMAT_VERSION}: "
                "update the package"
            )
    return data


def _counted_names(path: Path, data: h5py.Group, kind: Kind) -> list[str]:
    names = [name for name in data if name.startswith("demo_") and name.removeprefix("demo_").isdecimal()]
    names.sort(key=lambda name: int(name.removeprefix("demo_")))
    count = len(names) if kind == "regenerated" else whole_number(data, "num_demos")
    if kind == "worldenv":
        for i in range(min(count, len(names) + 1)):
            if f"demo_{i}" not in data:
                raise TrajectoryFormatError(f"{path}: /data has num_demos {count}, but /data/demo_{i} is missing")
        names.sort(key=lambda name: name != f"demo_{int(name.removeprefix('demo_'))}")  # demo_01 is none of ours
    if not 0 <= count <= len(names):
        raise TrajectoryFormatError(f"{path}: /data has num_demos {count}, but {len(names)} groups demo_<i>")
    if extra := names[count:]:
        warnings.warn(f"{path}: {', '.join(extra)} was not written to its end: ignored", stacklevel=5)
    return names[:count]


def _read_worldenv(demo: h5py.Group) -> Steps:
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
    if member(demo, "camera") is not None:
        camera = values(demo, "camera", f"float [{len(views)}, 3, 4]", steps).astype(np.float32)
    return {
        "proprio": np.concatenate(proprio).astype(np.float32),
        "actions": actions.astype(np.float32),
        "success": values(demo, "rewards", "uint8 [T]", steps) > 0,
        "camera": camera,
        "views": views,
    }


def _read_libero(demo: h5py.Group, kind: Kind) -> Steps:
    obs = member(demo, "obs")
    if isinstance(obs, h5py.Group):
        for name in ("agentview_rgb", "ee_states", "gripper_states"):
            if member(obs, name) is None:
                raise ValueError(
                    f"the dataset obs/{name} is missing (found {', '.join(sorted(obs))}): rename or convert what is "
                    "there to LIBERO's agentview_rgb [T, H, W, 3], ee_states [T, 6] and gripper_states [T, 2]"
                )
    actions = values(demo, "actions", "float [T, A]", None)
    steps = len(actions)
    if steps < 2:
        raise ValueError("is empty: it has no action that leads from one frame to the next")
    pose = values(demo, "obs/ee_states", "float [T, 6]", steps)
    finger = values(demo, "obs/gripper_states", "float [T, 2]", steps)
    aperture = np.abs(finger[:, :1] - finger[:, 1:]) / GRIPPER_OPENING_M
    reward = values(demo, "rewards", "number [T]", steps)
    return {
        "proprio": np.concatenate([pose, aperture.clip(0, 1)], axis=1).astype(np.float32),
        "actions": actions[:-1].astype(np.float32),
        "success": (reward[:-1] if kind == "regenerated" else reward[1:]) > 0,
        "camera": None,
        "views": tuple(view for view in LIBERO_VIEWS if member(demo, f"obs/{view}_rgb") is not None),
    }


def _frame_size(demo: h5py.Group, steps: Steps, kind: Kind) -> tuple[int, int]:
    rows = len(steps["actions"]) + (kind != "worldenv")
    keys = [(f"obs/{view}_rgb", FRAMES) for view in steps["views"]]
    if kind == "worldenv":
        keys += [(f"final_obs/{view}_rgb", FRAMES.replace("[T", "[1")) for view in steps["views"]]
    sizes = [array(demo, key, expected, rows).shape[1:3] for key, expected in keys]
    for (key, _), size in zip(keys, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(f"{key} has another image size than {keys[0][0]}: {list(size)}, not {list(sizes[0])}")
    return sizes[0]


def _labels(demo: h5py.Group) -> dict[str, Any]:
    return {
        "instruction": text(demo, "language_instruction"),
        "start": whole_number(demo, "start"),
        **{name: text(demo, name) for name in ("task", "split", "source")},
    }


def _libero_labels(path: Path, data: h5py.Group, index: int) -> dict[str, Any]:
    task = path.stem.removesuffix("_demo")
    # LIBERO names its files so: KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5
    instruction = re.sub(r"^.*SCENE\d*_", "", task).replace("_", " ")
    if "problem_info" in data.attrs:
        try:
            found = json.loads(text(data, "problem_info"))["language_instruction"]
        except (KeyError, TypeError) as error:
            raise ValueError("/data has an attribute problem_info without a language_instruction") from error
        instruction = found if isinstance(found, str) else "".join(found)
    return {"instruction": instruction, "task": task, "start": index, "split": "train", "source": "expert"}
