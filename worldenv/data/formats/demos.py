"""Trajectories in HDF5 files, whoever wrote them: ours (see layout), LIBERO's, robomimic's (see foreign)."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldenv.data.formats.foreign import File, read_foreign
from worldenv.data.formats.hdf5 import TrajectoryFormatError, array, keys, listed, member, named, whole_number
from worldenv.data.formats.layout import (
    FRAMES_PER_CHUNK,
    MOVING,
    Steps,
    crc32,
    read_checks,
    read_labels,
    read_own,
)
from worldenv.data.orientation import Orientation, upright
from worldenv.data.trajectory import check_labels, check_steps

CHUNKS_PER_READ = 4  # bounds the memory of one read


@dataclass(frozen=True, eq=False)
class Demo:
    """Where a trajectory lies, and what is known of it without its arrays."""

    path: Path
    name: str  # of its group in /data
    foreign: File | None  # None: ours
    steps: int  # T
    views: tuple[str, ...]
    pictures: tuple[str, ...]  # [V], of the datasets with their pictures
    size: tuple[int, int]  # H, W
    last: tuple[str, int] | None  # group and row of frame T; None: it is row T of obs
    labels: dict[str, Any]  # instruction, task, start, split, source
    checks: np.ndarray | None  # [T + 1, V] uint32
    orientation: Orientation  # of the stored pictures


def read_file(
    path: Path, file: h5py.File, instruction: str | None = None, orientation: Orientation | None = None
) -> Iterator[tuple[Demo, Steps]]:
    """All trajectories of a file, but for their frames; `instruction` and `orientation` take the place of the file's.

    Raises TrajectoryFormatError naming the file, the group and what is wrong: a dataset that is missing or of another
    shape or dtype, lengths that differ, values that are not finite or lie elsewhere, no trajectories.
    """
    with named(path, "/data"):
        data = _checked_data(path, file)
        is_own = "worldenv_format" in data.attrs
        names = _counted_names(path, data, is_own)
        if not names:
            raise ValueError("has no trajectories: the file is empty")
        foreign = None if is_own else File.of(path, file, data, instruction)
    total = 0
    for index, name in enumerate(names):
        with named(path, f"/data/{name}"):
            demo, steps = _read_demo(path, data, name, index, foreign, instruction, orientation)
        total += demo.steps
        yield demo, steps
    with named(path, "/data"):
        if is_own and (said := whole_number(data, "total")) != total:
            raise ValueError(f"has a total of {said} steps, but its trajectories have {total}: it is damaged")


def read_steps(file: h5py.File, demo: Demo) -> Steps:
    """The arrays of a trajectory but for its frames."""
    with named(demo.path, f"/data/{demo.name}"):
        group = file["data"][demo.name]
        return read_own(group) if demo.foreign is None else read_foreign(group, demo.foreign)[0]


def read_frames(file: h5py.File, demo: Demo, steps: np.ndarray, out: np.ndarray) -> None:
    """The frames of these steps (each once, rising), upright, into `out` [len(steps), V, H, W, 3] uint8.

    One read for each run of steps; a run goes on where the next step lies in the same chunk of the file or in the next.
    """
    with named(demo.path, f"/data/{demo.name}"):
        group, has_last = file["data"][demo.name], demo.last is not None and len(steps) > 0 and steps[-1] == demo.steps
        count = len(steps) - has_last
        for number, key in enumerate(demo.pictures):
            frames = group[f"obs/{key}"]
            for begin, end in _runs(steps[:count], frames.chunks):
                _read_run(frames, steps[begin:end], out[begin:end, number])
            if has_last:
                out[-1, number] = group[f"{demo.last[0]}/{key}"][demo.last[1]]
            for place, step in enumerate(steps if demo.checks is not None else ()):
                if crc32(out[place, number]) != demo.checks[step, number]:
                    raise ValueError(f"frame {step} of {key} is damaged: its checksum differs")
    if demo.orientation != "upright":
        out[...] = upright(out, demo.orientation).copy()


def _read_demo(
    path: Path,
    data: h5py.Group,
    name: str,
    index: int,
    foreign: File | None,
    instruction: str | None,
    orientation: Orientation | None,
) -> tuple[Demo, Steps]:
    group = member(data, name)
    if not isinstance(group, h5py.Group):
        raise ValueError("is not a group")
    if foreign is None:
        steps, labels = read_own(group), read_labels(group)
        pictures, last = tuple(f"{view}_rgb" for view in steps["views"]), ("final_obs", 0)
    else:
        (steps, pictures, last), labels = read_foreign(group, foreign), foreign.labels(group, name, index)
    check_steps(**steps)
    check_labels(**labels)
    length = len(steps["actions"])
    if "num_samples" in group.attrs and (said := whole_number(group, "num_samples")) != length + (last is None):
        raise ValueError(f"has num_samples {said}, but {length + (last is None)} actions")
    size = _frame_size(group, pictures, last, length)
    checks = read_checks(group, steps, labels) if foreign is None else None
    if instruction is not None:
        labels = labels | {"instruction": instruction}
    way = orientation or ("upright" if foreign is None else foreign.orientation)
    return Demo(path, name, foreign, length, steps["views"], pictures, size, last, labels, checks, way), steps


def _frame_size(
    demo: h5py.Group, pictures: tuple[str, ...], last: tuple[str, int] | None, steps: int
) -> tuple[int, int]:
    parts = [("obs", steps + (last is None))]
    if last is not None:
        parts.append((last[0], last[1] + 1))
    found = {
        f"{name}/{key}": array(demo, f"{name}/{key}", f"uint8 [{n}, H, W, 3]", None)
        for name, n in parts
        for key in pictures
    }
    (first, one), *others = ((key, frames.shape[1:3]) for key, frames in found.items())
    for key, size in others:
        if size != one:
            raise ValueError(f"{key} has another image size than {first}: {list(size)}, not {list(one)}")
    return one


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
        raise TrajectoryFormatError(
            f"{path}: /data is missing (found {listed(keys(file))}): not a LIBERO or robomimic file"
        )
    if "worldenv_format" in data.attrs:
        version = whole_number(data, "worldenv_format")
        if not 1 <= version <= MOVING:
            raise ValueError(f"has worldenv_format {version}, this version reads 1 to {MOVING}: update the package")
    return data


def _counted_names(path: Path, data: h5py.Group, is_own: bool) -> list[str]:
    names = [name for name in keys(data) if name.startswith("demo_") and name.removeprefix("demo_").isdecimal()]
    names.sort(key=lambda name: int(name.removeprefix("demo_")))
    if not is_own and "num_demos" not in data.attrs:
        return names
    count, found = whole_number(data, "num_demos"), set(names)
    if is_own:
        for i in range(min(count, len(names) + 1)):
            if f"demo_{i}" not in found:
                raise ValueError(f"has num_demos {count}, but /data/demo_{i} is missing")
        names.sort(key=lambda name: name != f"demo_{int(name.removeprefix('demo_'))}")  # demo_01 is none of ours
    if not 0 <= count <= len(names):
        raise ValueError(f"has num_demos {count}, but {len(names)} groups demo_<i>")
    if extra := names[count:]:
        warnings.warn(f"{path}: {listed(extra)} was not written to its end: ignored", stacklevel=5)
    return names[:count]
