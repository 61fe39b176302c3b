"""Trajectory files of every kind that is read, damaged byte by byte, in their structure, and in what they claim."""

import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from cases import Case, Silent
from hdf5_damages import ANY, ATTRIBUTES, BYTES, DATASETS, REFUSED, SAME, WHOLE

from worldenv.data.clips import Clips
from worldenv.data.trajectories import Trajectory, TrajectoryFormatError, TrajectoryReader, TrajectoryWriter

ARRAYS = ("frames", "proprio", "actions", "success")
LABELS = ("views", "instruction", "task", "start", "split", "source")
OBS = ("agentview_rgb", "ee_states", "gripper_states")


def cases(rng: random.Random) -> Iterator[Case]:
    """Endless, and the same for the same rng."""
    while True:
        kind, seed = rng.choice(list(KINDS)), rng.randrange(2**32)
        group = rng.choices(("bytes", "datasets", "attributes", "whole", "paths"), (8, 5, 4, 2, 1))[0]
        if group == "paths":
            name = rng.choice(list(PATHS))
            yield Case(f"{name} as a path", partial(_use_path, PATHS[name]))
            continue
        damages = {"bytes": BYTES, "datasets": DATASETS, "attributes": ATTRIBUTES, "whole": WHOLE}[group]
        name, at = rng.choice(list(damages)), ""
        if group == "datasets":
            at = rng.choice(KINDS[kind][1])
        elif group == "attributes":
            at = rng.choice(KINDS[kind][2])
        yield Case(f"{kind}: {name} {at} (seed {seed})", partial(_damage_and_read, kind, damages[name], at, seed))


def _damage_and_read(kind: str, damage: tuple[Callable, str], at: str, seed: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    path, rng = folder / "put_it_down_demo.hdf5", random.Random(seed)
    KINDS[kind][0](path)
    expected = list(TrajectoryReader(path))
    act, outcome = damage
    act(path, at, rng)
    if outcome == ANY and kind == "ours":
        outcome = "refused or the same"  # it has checksums
    try:
        found = list(TrajectoryReader(path))
    except TrajectoryFormatError as error:
        if str(path) not in str(error):
            raise Silent(f"the message does not name the file: {error}") from error
        if outcome == SAME:
            raise Silent(f"a whole file was refused: {error}") from error
        raise
    if outcome == REFUSED:
        raise Silent(f"read {len(found)} trajectories, {len(found[0].actions)} steps, {found[0].instruction!r}")
    if outcome != ANY:
        _check_same(found, expected)
    try:
        clips = Clips.open(path)
    except ValueError:
        return  # trajectories that do not fit together
    for i, trajectory in enumerate(found):
        frames = clips.frames_at(torch.tensor([i]), torch.arange(len(trajectory.frames))[None])[0]
        if not np.array_equal(frames.numpy(), trajectory.frames):
            raise Silent("a batch has other frames than the trajectory")


def _check_same(found: list[Trajectory], expected: list[Trajectory]) -> None:
    if len(found) != len(expected):
        raise Silent(f"{len(found)} trajectories of {len(expected)}")
    for one, other in zip(found, expected, strict=True):
        wrong = [name for name in ARRAYS if not np.array_equal(getattr(one, name), getattr(other, name))]
        wrong += [name for name in LABELS if getattr(one, name) != getattr(other, name)]
        if wrong or not np.array_equal(one.camera, other.camera):
            raise Silent(f"other {', '.join(wrong) or 'camera'}")


def _ours(path: Path) -> None:
    rng = np.random.default_rng(0)
    with TrajectoryWriter(path.parent / "set") as writer:
        for i, steps in enumerate((3, 5)):
            pictures = rng.integers(0, 256, (steps + 1, 2, 6, 8, 3), dtype=np.uint8)
            proprio, actions = rng.normal(size=(steps + 1, 7)), rng.uniform(-1, 1, (steps, 7))
            steps = (proprio.astype(np.float32), actions.astype(np.float32), np.arange(steps) > 1)
            camera = rng.normal(size=(2, 3, 4)).astype(np.float32)
            labels = ("put it down", "task", i, "train", "expert")
            writer.write(Trajectory(pictures, *steps, camera, ("agentview", "eye_in_hand"), *labels))
    (path.parent / "set" / "part-00000.h5").rename(path)


def _foreign(path: Path, kind: str) -> None:
    rng, steps = np.random.default_rng(0), 5
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if kind != "regenerated":
            data.attrs["problem_info"] = json.dumps({"language_instruction": "put it down"})
            data.attrs["env_args"] = json.dumps({"env_name": "Lift"})
        if kind == "libero":
            data.attrs["num_demos"] = 2
        for number in (0, 1) if kind == "libero" else (1, 4):
            demo = data.create_group(f"demo_{number}")
            if kind != "regenerated":
                demo.attrs["num_samples"] = steps
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["rewards"] = demo["dones"] = np.eye(steps, dtype=np.uint8)[-1]
            for group in ("obs", "next_obs") if kind == "robomimic" else ("obs",):
                for name, value in _observations(rng, steps, kind == "robomimic").items():
                    demo[f"{group}/{name}"] = value


def _observations(rng: np.random.Generator, steps: int, is_robomimic: bool) -> dict[str, np.ndarray]:
    pictures, pose = rng.integers(0, 256, (steps, 6, 8, 3), dtype=np.uint8), rng.normal(size=(steps, 6))
    if not is_robomimic:
        return dict(zip(OBS, (pictures, pose, rng.normal(size=(steps, 2))), strict=True))
    turn = np.eye(4)[rng.integers(0, 4, steps)]
    names = ("agentview_image", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    return dict(zip(names, (pictures, pose[:, :3], turn, pose[:, :2]), strict=True))


KINDS = {  # what writes it, datasets that are read, attributes that are read
    "ours": (
        _ours,
        ["actions", "rewards", "camera", "frames_crc32", *(f"{o}/{k}" for o in ("obs", "final_obs") for k in OBS)],
        [
            *("/data num_demos", "/data total", "/data worldenv_format"),
            *(f"demo {n}" for n in ("language_instruction", "task", "start", "split", "source", "views", "crc32")),
        ],
    ),
    "libero": (
        partial(_foreign, kind="libero"),
        ["actions", "rewards", *(f"obs/{key}" for key in OBS)],
        ["/data num_demos", "/data problem_info", "demo num_samples"],
    ),
    "regenerated": (
        partial(_foreign, kind="regenerated"),
        ["actions", "rewards", *(f"obs/{key}" for key in OBS)],
        ["/data problem_info"],
    ),
    "robomimic": (
        partial(_foreign, kind="robomimic"),
        ["actions", "rewards", "obs/agentview_image", "obs/robot0_eef_quat", "next_obs/robot0_gripper_qpos"],
        ["/data problem_info", "demo num_samples"],
    ),
}


def _use_path(make: Callable[[Path], object], folder: Path) -> None:
    given = make(folder)
    TrajectoryReader(given)
    raise Silent(f"opened {given!r}")


def _made(path: Path, write: Callable[[Path], object]) -> Path:
    write(path)
    return path


PATHS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda folder: _made(folder / "a.hdf5", os.mkfifo),
    "an empty folder": lambda folder: folder,
    "a LeRobot folder": lambda folder: (
        (_made(folder / "meta", Path.mkdir), _made(folder / "data", Path.mkdir))[0].parent
    ),
    "a part that is a folder": lambda folder: _made(folder / "part-00000.h5", Path.mkdir).parent,
    "a part that is a pipe": lambda folder: _made(folder / "part-00000.h5", os.mkfifo).parent,
    "a link in a circle": lambda folder: _made(folder / "a", lambda path: path.symlink_to(path)),
    "a link to nothing": lambda folder: _made(folder / "a", lambda path: path.symlink_to("nothing")),
    "a device": lambda folder: "/dev/zero",
    "an empty file": lambda folder: _made(folder / "a.hdf5", Path.touch),
    "a text": lambda folder: _made(folder / "a.hdf5", lambda path: path.write_text("frames\n" * 1000)),
    "nothing": lambda folder: folder / "nothing",
    "a long name": lambda folder: folder / ("a" * 5000),
    "a name with a line break": lambda folder: folder / "a\nb",
    "NUL": lambda folder: "a\0b",
    "bytes": lambda folder: os.fsencode(folder / "\udcff"),
    "an integer": lambda folder: 3,
    "None": lambda folder: None,
    "a list": lambda folder: [folder],
    "nobody's home": lambda folder: "~nobody-of-that-name/set",
}
