"""`worldenv-convert`: trajectories from one format into another."""

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np

from worldenv.data.formats.lerobot.reader import LeRobotReader, LeRobotTables
from worldenv.data.formats.lerobot.writer import Pictures, write_lerobot
from worldenv.data.formats.libero import write_libero
from worldenv.data.orientation import Agreement, Orientation, check_upright
from worldenv.data.paths import as_path
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.fields import from_document, shown
from worldenv.files import read_json, write_text
from worldenv.robot.bounds import ActionBounds
from worldenv.robot.camera import as_numbers

TARGETS = ("hdf5", "libero", "lerobot-v2.1", "lerobot-v3.0")
CHECKED = 5  # trajectories whose pictures are compared with the camera
LEROBOT_ONLY = ("views", "size", "succeeded")
RECORDED = "recorded"


class Parser(argparse.ArgumentParser):
    """Raises UserError for wrong words."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Raises UserError, or SystemExit at --help."""
    parser = Parser(
        "worldenv-convert",
        description="Read trajectories (a folder or file of this package, a file of LIBERO or robomimic, a folder of "
        "LeRobot v2.1 or v3.0) and write them in another format.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", type=Path)
    add("target", type=Path, help="a new folder; for libero a file <task>_demo.hdf5")
    add("--to", choices=TARGETS, default="hdf5", help="hdf5: this package's own, which training reads (default)")
    add("--orientation", choices=get_args(Orientation), help="in which the source's pictures are stored")
    add("--instruction", help="of all trajectories, whatever the source says")
    add("--camera", type=Path, help='JSON: {"VIEW": {"intrinsics": 3 x 3, "extrinsics": 4 x 4 (world to camera)}}')
    add("--check", action="store_true", help="compare pictures and camera: proprioception begins with x, y, z (m)")
    add("--bounds", help=f'of actions: "{RECORDED}" (a source of LeRobot), or JSON: {{"low": [A], "high": [A]}}')
    add("--views", help="LeRobot: cameras to read, a,b,c")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="LeRobot: size of the frames")
    add("--succeeded", help="LeRobot: episodes that end in success: all, none, or their numbers, 0,3,4")
    add("--fps", type=float, help="of a target of LeRobot; default: that of a source of LeRobot")
    add("--pictures", choices=get_args(Pictures), default="h264", help="of a target of LeRobot; png: without loss")
    return parser.parse_args(list(words))


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the options say; returns what was written. Raises UserError."""
    source, target = as_path(options.source), as_path(options.target)
    is_lerobot = (source / "meta/info.json").exists() or (source / "meta").is_dir()
    if not is_lerobot and (given := [name for name in LEROBOT_ONLY if getattr(options, name) is not None]):
        raise UserError(f"--{given[0]} is for sources of LeRobot, and {source} is none")
    tables = LeRobotTables(source, views=_views(options.views)) if is_lerobot else None
    bounds = _bounds(options.bounds, tables)
    reader = _lerobot(options, tables, bounds) if is_lerobot else _hdf5(options)
    agreement = _checked(reader, options) if options.check else None
    counts = {"trajectories": 0, "steps": 0}
    trajectories = _counted(reader, counts)
    if options.to == "hdf5":
        with TrajectoryWriter(target) as writer:
            for trajectory in trajectories:
                writer.write(trajectory)
    elif options.to == "libero":
        write_libero(target, trajectories)
    else:
        fps = options.fps or (tables.info.fps if tables else None)
        if fps is None:
            raise UserError("--fps is missing: the source does not say how many frames it has in a second")
        about = {"version": options.to.removeprefix("lerobot-"), "pictures": options.pictures, "bounds": bounds}
        write_lerobot(target, trajectories, fps, **about, robot=tables.robot if tables else None)
    kept = None
    if bounds is not None:
        write_text(kept := Path(f"{target}.bounds.json"), json.dumps(asdict(bounds)))
    found = {"target": str(target), "format": options.to, **counts, "bounds": None if kept is None else str(kept)}
    return found | {"agreement": None if agreement is None else asdict(agreement)}


class _Replaced:
    """Trajectories of a reader with another camera."""

    def __init__(self, reader: TrajectoryReader, camera: np.ndarray) -> None:
        self.reader, self.camera = reader, camera

    def __iter__(self) -> Iterator[Trajectory]:
        return (replace(trajectory, camera=self.camera) for trajectory in self.reader)


def _hdf5(options: argparse.Namespace) -> TrajectoryReader | _Replaced:
    reader = TrajectoryReader(options.source, options.instruction, options.orientation)
    if options.camera is None:
        return reader
    return _Replaced(reader, read_camera(options.camera, reader[0].views))


def _lerobot(options: argparse.Namespace, tables: LeRobotTables, bounds: ActionBounds | None) -> LeRobotReader:
    names = tuple(view.name for view in tables.info.views)
    return LeRobotReader(
        tables,
        orientation=options.orientation or "upright",
        size=None if options.size is None else tuple(options.size),
        camera=None if options.camera is None else read_camera(options.camera, names),
        bounds=bounds,
        succeeded=_succeeded(options.succeeded),
        instruction=options.instruction,
    )


def read_camera(path: Path, views: Sequence[str]) -> np.ndarray:  # [V, 3, 4] float32
    """The projections of the views, world point (m) to homogeneous pixel, from a file as --help describes it.

    Instead of intrinsics and extrinsics, a view may have its projection, 3 x 4. Raises UserError.
    """
    document, out = read_json(path), []
    for view in views:
        said = document.get(view)
        if isinstance(said, dict):
            inner, outer = (as_numbers(name, said.get(name)) for name in ("intrinsics", "extrinsics"))
            if inner.shape != (3, 3) or outer.shape != (4, 4):
                raise UserError(f"{path}: {view} should have intrinsics, 3 x 3 (pixels), and extrinsics, 4 x 4 (m)")
            said = inner @ outer[:3]
        camera = as_numbers(f"{path}: the camera {view}", said)
        if camera.shape != (3, 4) or not np.isfinite(camera).all():
            raise UserError(f"{path}: {view} is {list(camera.shape)}; it should be finite numbers, 3 x 4")
        out.append(camera.astype(np.float32))
    return np.stack(out)


def _checked(reader: Any, options: argparse.Namespace) -> Agreement:
    found = check_upright(islice(reader, CHECKED), read_as=options.orientation or "upright")
    if found.orientation is None:
        raise UserError(
            f"too little moves in the first {CHECKED} trajectories to compare pictures and camera (correlation "
            f"{found.across:.2f} across, {found.down:.2f} down, in {found.changes} changes): leave --check out"
        )
    return found


def _bounds(said: str | None, tables: LeRobotTables | None) -> ActionBounds | None:
    if said is None:
        return None
    if said != RECORDED:
        path = as_path(said)
        return from_document(ActionBounds, read_json(path), str(path))
    if tables is None:
        raise UserError(f"--bounds {RECORDED} is for sources of LeRobot; actions in HDF5 are in [-1, 1] already")
    return tables.bounds


def _views(said: str | None) -> tuple[str, ...] | None:
    return None if said is None else tuple(said.split(","))


def _succeeded(said: str | None) -> bool | Collection[int] | None:
    if said in (None, "all", "none"):
        return None if said is None else said == "all"
    if not all(part.isdecimal() for part in said.split(",")):
        raise UserError(f"--succeeded is {shown(said)}; it should be all, none, or numbers: 0,3,4")
    return {int(part) for part in said.split(",")}


def _counted(reader: Any, counts: dict[str, int]) -> Iterator[Trajectory]:
    for trajectory in reader:
        counts["trajectories"] += 1
        counts["steps"] += len(trajectory.actions)
        yield trajectory
