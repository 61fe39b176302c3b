"""Trajectories on disk: HDF5 in the layout of LIBERO and robomimic, with the frame after the last action added.

    /data                     num_demos, total, env_args, problem_info, worldenv_format
    /data/demo_<i>            num_samples, language_instruction, task, start, split, source
        actions [T, 7] f32    rewards [T] u8 (success after the action)    dones [T] u8
        obs/                  agentview_rgb [T, H, W, 3] u8    ee_states [T, 6] f32    gripper_states [T, 1] f32
        final_obs/            the same three, of length 1

obs[t] is what is seen before actions[t]. Only the first num_demos groups count.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldenv.data.journal import JournaledFile, forget, recover, uninterrupted
from worldenv.errors import UserError

FORMAT_VERSION = 1
FRAMES_PER_CHUNK = 16
INDEX_ROOM_BYTES = 2**19  # more than the index of a file grows by one trajectory
SOURCES = ("expert", "policy")
GRIPPER_OPENING_M = 0.08  # distance of the Panda gripper's fingers when it is open
OBSERVATIONS = {"agentview_rgb": "uint8 [T, H, W, 3]", "ee_states": "float [T, 6]", "gripper_states": "float [T, 1]"}


class TrajectoryFormatError(UserError):
    """A trajectory file that cannot be read: names the file, the group in it and what is wrong."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode, successful or not. Raises ValueError if an entry is not as written here or not finite."""

    frames: np.ndarray  # [T + 1, H, W, 3] uint8, frames[t] is seen before actions[t]
    proprio: np.ndarray  # [T + 1, 7] float32
    actions: np.ndarray  # [T, 7] float32 in [-1, 1], T >= 1
    success: np.ndarray  # [T] bool, after actions[t]
    instruction: str
    task: str
    start: int  # start-state number within the task and split
    split: str
    source: str  # "expert" or "policy"
    camera: np.ndarray | None = None
    views: tuple[str, ...] = ("agentview",)

    def __post_init__(self) -> None:
        steps = len(self.actions) if np.ndim(self.actions) else 0
        if steps < 1:
            raise ValueError(f"actions is {_described(self.actions)}: a trajectory has at least one action")
        size = self.frames.shape[2:4]
        _check_array("actions", self.actions, np.float32, (steps, *np.shape(self.actions)[1:]))
        _check_array("frames", self.frames, np.uint8, (steps + 1, len(self.views), *size, 3))
        _check_array("proprio", self.proprio, np.float32, (steps + 1, *np.shape(self.proprio)[1:]))
        _check_array("success", self.success, np.bool_, (steps,))
        if 0 in size:
            raise ValueError(f"frames is {_described(self.frames)}: images should have at least one pixel")
        if np.abs(self.actions).max() > 1:
            raise ValueError(f"actions reach {np.abs(self.actions).max():g}: they should be in [-1, 1]; rescale")
        for name in ("instruction", "task", "split"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it should be a string that is not empty")
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}: it should be one of {', '.join(SOURCES)}")
        if isinstance(self.start, bool) or not isinstance(self.start, int | np.integer):
            raise ValueError(f"start is {self.start!r}: it should be an integer")


class TrajectoryWriter:
    """Stream trajectories into a file, each complete on disk when `write` returns.

    A kill loses at most the trajectory being written. Raises FileExistsError if the file exists and `append` is False,
    TrajectoryFormatError on appending to a file of another kind.
    """

    def __init__(self, path: str | Path, append: bool = False, env_args: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: the folder {self.path.parent} does not exist; make it first")
        if self.path.exists() and not append:
            raise FileExistsError(f"{self.path} exists already: use append=True to add to it, or give another path")
        if not self.path.exists():
            _create(self.path, env_args or {})
        self._count = _count_to_append(self.path)
        self._storage = JournaledFile(self.path)
        self._file = h5py.File(self._storage, "r+")
        self._data = self._file["data"]
        self._drop_uncounted()

    def __enter__(self) -> "TrajectoryWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    @uninterrupted()
    def write(self, trajectory: Trajectory) -> None:
        """Append one trajectory. Raises OSError naming the path, with the file unchanged, if the disk is full."""
        size = trajectory.frames.nbytes + trajectory.proprio.nbytes + trajectory.actions.nbytes
        # HDF5 must never meet a full disk: it loses the file and can crash the process.
        self._storage.reserve(size + INDEX_ROOM_BYTES)
        self._write_demo(self._data.create_group(f"demo_{self._count}"), trajectory)
        if not self._count:
            self._data.attrs["problem_info"] = json.dumps({"language_instruction": trajectory.instruction})
        self._data.attrs.modify("total", np.int64(self._data.attrs["total"] + len(trajectory.actions)))
        self._data.attrs.modify("num_demos", np.int64(self._count + 1))
        self._file.flush()
        self._storage.commit()
        self._count += 1

    @uninterrupted()
    def close(self) -> None:
        """Close the file; done already where the writer is used in a `with` block."""
        if self._file:
            self._file.close()
            self._storage.close()

    @uninterrupted()
    def _drop_uncounted(self) -> None:
        for name in _uncounted_names(self._data, self._count):
            warnings.warn(f"{self.path}: {name} was not written to its end: dropped", stacklevel=3)
            del self._data[name]
        self._file.flush()
        self._storage.commit()

    def _write_demo(self, demo: h5py.Group, trajectory: Trajectory) -> None:
        steps = len(trajectory.actions)
        done = np.zeros(steps, np.uint8)
        done[-1] = 1
        demo["actions"] = trajectory.actions
        demo["rewards"] = trajectory.success.astype(np.uint8)
        demo["dones"] = done
        for name, part in (("obs", slice(0, steps)), ("final_obs", slice(steps, None))):
            frame, proprio = trajectory.frames[part], trajectory.proprio[part]
            group = demo.create_group(name)
            chunk = (min(FRAMES_PER_CHUNK, len(frame)), *frame.shape[1:])
            # An eighth of the size of lzf on rendered frames, and no slower; a shuffle of bytes does nothing to uint8.
            group.create_dataset("agentview_rgb", data=frame, chunks=chunk, compression="gzip", compression_opts=1)
            group["ee_states"] = proprio[:, :6]
            group["gripper_states"] = proprio[:, 6:]
        demo.attrs.update(
            num_samples=steps,
            language_instruction=trajectory.instruction,
            task=trajectory.task,
            start=int(trajectory.start),
            split=trajectory.split,
            source=trajectory.source,
        )


class TrajectoryReader:
    """The trajectories of a file, of ours or of LIBERO's own, checked when it is opened and read one at a time.

    Raises TrajectoryFormatError naming the file, the group and what is wrong: truncated, not HDF5, a dataset that is
    missing or of another shape or dtype, lengths that differ, values that are not finite, no trajectories.

    LIBERO's own files lack the frame after the last action: that action is dropped, and an episode has one action less
    than the file. They were recorded with obs[t] taken after actions[t], as the policies trained on them expect; the
    reward of the file at t + 1 is hence the success after actions[t] here. Pictures are returned as stored.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path, "r")
        try:
            self._data = _checked_data(self.path, self._file)
            self._is_ours = "worldenv_format" in self._data.attrs
            self._names = _counted_names(self.path, self._data)
            if not self._names:
                raise TrajectoryFormatError(f"{self.path}: /data has no trajectories: the file is empty")
            if extra := _uncounted_names(self._data, len(self._names)):
                warnings.warn(f"{self.path}: {', '.join(extra)} was not written to its end: ignored", stacklevel=2)
            for name in self._names:
                _check_demo(self.path, self._data, name, self._is_ours)
            self._file_instruction = None if self._is_ours else _libero_instruction(self.path, self._data)
            self.tasks = sorted({self._labels(i)["task"] for i in range(len(self))})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TrajectoryReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Trajectory:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {self.path}, which has {len(self)} trajectories")
        index %= len(self)
        demo = self._data[self._names[index]]
        try:
            array = _read_ours(demo) if self._is_ours else _read_libero(demo)
            return Trajectory(**array, **self._labels(index))
        except (OSError, ValueError) as error:
            raise TrajectoryFormatError(f"{self.path}: {demo.name}: {error}") from error

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Close the file; done already where the reader is used in a `with` block."""
        self._file.close()

    def _labels(self, index: int) -> dict[str, Any]:
        if not self._is_ours:
            task = self.path.stem.removesuffix("_demo")
            return {
                "instruction": self._file_instruction,
                "task": task,
                "start": index,
                "split": "train",
                "source": "expert",
            }
        attribute = self._data[self._names[index]].attrs
        return {
            "instruction": attribute["language_instruction"],
            "start": int(attribute["start"]),
            **{name: attribute[name] for name in ("task", "split", "source")},
        }


def _described(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"


def _check_array(name: str, array: Any, dtype: type, shape: tuple) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        expected = f"{np.dtype(dtype)} [{', '.join(map(str, shape))}]"
        raise ValueError(f"{name} is {_described(array)}: it should be a numpy array, {expected}")
    if dtype is np.float32 and not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite (first at row {_first_bad_row(array)})")


def _first_bad_row(array: np.ndarray) -> int:
    return int(np.argmin(np.isfinite(array).all(axis=-1)))


def _create(path: Path, env_args: Mapping[str, Any]) -> None:
    # Under another name first: a file killed before its header is whole could not be appended to.
    temporary = path.with_name(f".{path.name}.partial")
    with h5py.File(temporary, "w", libver=("earliest", "v108")) as file:
        data = file.create_group("data")
        data.attrs.update(num_demos=np.int64(0), total=np.int64(0), worldenv_format=np.int64(FORMAT_VERSION))
        data.attrs.update(env_args=json.dumps(dict(env_args)), problem_info=json.dumps({}))
    forget(path)
    temporary.rename(path)


def _count_to_append(path: Path) -> int:
    with _open(path, "r") as file:
        data = _checked_data(path, file)
        if "worldenv_format" not in data.attrs:
            raise TrajectoryFormatError(f"{path}: /data has no worldenv_format: append only to files of this package")
        names = _counted_names(path, data)
        for name in names:
            _check_demo(path, data, name, is_ours=True)
    # Opened and closed, so that HDF5 cuts off what a killed writer left behind the end.
    _open(path, "r+").close()
    return len(names)


def _open(path: Path, mode: str) -> h5py.File:
    if not path.is_file():
        raise TrajectoryFormatError(f"{path}: there is no such file")
    try:
        recover(path)
        return h5py.File(path, mode)
    except OSError as error:
        if isinstance(error, BlockingIOError) or "unable to lock" in str(error):
            raise TrajectoryFormatError(f"{path}: another process has it open: close that one first") from error
        if isinstance(error, PermissionError):
            raise
        if "truncated file" in str(error):
            raise TrajectoryFormatError(f"{path}: truncated: its end is missing ({error})") from error
        raise TrajectoryFormatError(f"{path}: not an HDF5 file, or cut off in its header ({error})") from error


def _checked_data(path: Path, file: h5py.File) -> h5py.Group:
    if not isinstance(file.get("data"), h5py.Group):
        found = ", ".join(sorted(file)) or "nothing"
        raise TrajectoryFormatError(f"{path}: /data is missing (found {found}): not a LIBERO or robomimic file")
    data = file["data"]
    version = data.attrs.get("worldenv_format", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise TrajectoryFormatError(
            f"{path}: /data has worldenv_format {version}, this version reads {FORMAT_VERSION}: update the package"
        )
    return data


def _counted_names(path: Path, data: h5py.Group) -> list[str]:
    count = int(data.attrs.get("num_demos", len(_demo_names(data))))
    names = [f"demo_{i}" for i in range(count)]
    if absent := [name for name in names if name not in data]:
        raise TrajectoryFormatError(f"{path}: /data has num_demos {count}, but /data/{absent[0]} is missing")
    return names


def _demo_names(data: h5py.Group) -> list[str]:
    return [name for name in data if name.removeprefix("demo_").isdecimal()]


def _uncounted_names(data: h5py.Group, count: int) -> list[str]:
    return [name for name in _demo_names(data) if int(name.removeprefix("demo_")) >= count]


def _check_demo(path: Path, data: h5py.Group, name: str, is_ours: bool) -> None:
    demo = data[name]
    expected = {"actions": "float [T, 7]", "rewards": "uint8 [T]"}
    expected |= {f"obs/{key}": OBSERVATIONS[key] for key in OBSERVATIONS}
    if is_ours:
        expected |= {f"final_obs/{key}": text.replace("[T", "[1") for key, text in OBSERVATIONS.items()}
    else:
        expected["obs/gripper_states"] = "float [T, 2]"
    try:
        steps = len(_dataset(demo, "actions"))
        for key, text in expected.items():
            _check_dataset(_dataset(demo, key), text, steps)
        if steps < (1 if is_ours else 2):
            raise ValueError("is empty: it has no action that leads from one frame to the next")
        if is_ours and demo["obs/agentview_rgb"].shape[1:] != demo["final_obs/agentview_rgb"].shape[1:]:
            raise ValueError("final_obs/agentview_rgb has another image size than obs/agentview_rgb")
        labels = ("language_instruction", "task", "start", "split", "source") if is_ours else ()
        if absent := [label for label in labels if label not in demo.attrs]:
            raise ValueError(f"the attribute {absent[0]} is missing")
    except (ValueError, OSError) as error:
        raise TrajectoryFormatError(f"{path}: {demo.name}: {error}") from error


def _dataset(demo: h5py.Group, key: str) -> h5py.Dataset:
    dataset = demo.get(key) if isinstance(demo, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError(f"the dataset {key} is missing")
    return dataset


def _check_dataset(dataset: h5py.Dataset, expected: str, steps: int) -> None:
    kind, extent = expected.removesuffix("]").split(" [")
    sizes = extent.split(", ")
    is_kind = dataset.dtype == np.uint8 if kind == "uint8" else dataset.dtype.kind == "f"
    fits = len(dataset.shape) == len(sizes) and all(
        found > 0 if size in "HW" else found == int(size)
        for found, size in zip(dataset.shape[1:], sizes[1:], strict=True)
    )
    key = "/".join(dataset.name.split("/")[3:])
    if not is_kind or not fits:
        raise ValueError(f"{key} is {dataset.dtype} {list(dataset.shape)}, it should be {expected}")
    length = steps if sizes[0] == "T" else 1
    if len(dataset) != length:
        raise ValueError(f"lengths differ: {key} has {len(dataset)} rows, it should have {length} (actions: {steps})")
    if kind == "float" and not np.isfinite(value := dataset[()]).all():
        raise ValueError(f"{key} has values that are not finite (first at row {_first_bad_row(value)})")


def _read_ours(demo: h5py.Group) -> dict[str, np.ndarray]:
    obs, final = demo["obs"], demo["final_obs"]
    frames = np.empty((len(obs["agentview_rgb"]) + 1, *obs["agentview_rgb"].shape[1:]), np.uint8)
    # Straight into place: joining two arrays would hold every frame twice.
    obs["agentview_rgb"].read_direct(frames, dest_sel=np.s_[:-1])
    final["agentview_rgb"].read_direct(frames, dest_sel=np.s_[-1:])
    parts = [np.concatenate([group["ee_states"][()], group["gripper_states"][()]], axis=1) for group in (obs, final)]
    return {
        "frames": frames,
        "proprio": np.concatenate(parts).astype(np.float32),
        "actions": demo["actions"][()].astype(np.float32),
        "success": demo["rewards"][()] > 0,
    }


def _read_libero(demo: h5py.Group) -> dict[str, np.ndarray]:
    finger = demo["obs/gripper_states"][()]
    aperture = np.abs(finger[:, :1] - finger[:, 1:]) / GRIPPER_OPENING_M
    return {
        "frames": demo["obs/agentview_rgb"][()],
        "proprio": np.concatenate([demo["obs/ee_states"][()], aperture.clip(0, 1)], axis=1).astype(np.float32),
        "actions": demo["actions"][:-1].astype(np.float32),
        "success": demo["rewards"][1:] > 0,
    }


def _libero_instruction(path: Path, data: h5py.Group) -> str:
    try:
        instruction = json.loads(data.attrs["problem_info"])["language_instruction"]
    except (KeyError, TypeError, ValueError) as error:
        raise TrajectoryFormatError(
            f"{path}: /data has no attribute problem_info with a language_instruction: the instruction is unknown"
        ) from error
    return instruction if isinstance(instruction, str) else "".join(instruction)
