"""Trajectories as a data set of LeRobot.

A trajectory of T actions becomes T + 1 rows: the last one shows the last frame, and repeats action and success. What
LeRobot has no place for (task, start, split, source, camera) is in columns of meta/episodes that begin with `worldenv`.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldenv.data.formats.lerobot.episodes import OWN
from worldenv.data.formats.lerobot.extra import need
from worldenv.data.formats.lerobot.pictures import CODECS, VideoWriter, png
from worldenv.data.formats.lerobot.stats import merged, of_numbers, of_pictures
from worldenv.data.paths import as_path
from worldenv.data.trajectory import Trajectory, check_alike
from worldenv.errors import UserError
from worldenv.files import reason, sync
from worldenv.robot.bounds import ActionBounds
from worldenv.robot.kinematics import is_number
from worldenv.robot.robot import Robot

Version = Literal["v2.1", "v3.0"]
Pictures = Literal["h264", "av1", "png"]  # videos, with loss; in the tables, without
CHUNK = 1000  # files in a folder
COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
NEXT = {"next.reward": "float32", "next.success": "bool", "next.done": "bool"}
PATHS = {
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


def write_lerobot(
    folder: str | Path,
    trajectories: Iterable[Trajectory],
    fps: float,
    *,
    version: Version = "v3.0",
    pictures: Pictures = "h264",
    bounds: ActionBounds | None = None,  # actions are written in the robot's units; None: in [-1, 1], as they are
    robot: Robot | None = None,  # for the names of the numbers
    robot_type: str = "unknown",
    data_mb: float = 100,  # a file of v3.0 ends with the episode that makes it larger
    video_mb: float = 200,
) -> int:
    """Write the data set, whole or not at all; returns the number of episodes.

    The folder must be empty or not exist. Raises UserError if it is not, if trajectories do not fit together, if
    there are none, or if the disk is full.
    """
    need("pyarrow"), need("av")
    folder = as_path(folder)
    for name, value, known in (("version", version, PATHS), ("pictures", pictures, (*CODECS, "png"))):
        if value not in known:
            raise UserError(f"{name} is {value!r:.50}; it should be one of {', '.join(known)}")
    if not is_number(fps) or not 0 < fps <= 1000:
        raise UserError(f"fps is {fps!r:.50}; it should be a positive number of frames/s")
    if not folder.parent.is_dir():
        raise UserError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: give another path")
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        made.mkdir()
        try:
            writer = _Writer(made, fps, version, pictures, bounds, robot, robot_type, data_mb, video_mb)
            try:
                for trajectory in trajectories:
                    writer.add(trajectory)
            finally:
                writer.close()
            writer.finish()
            for path in made.rglob("*"):
                sync(path)
            os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        sync(folder.parent)
    except (OSError, need("av").FFmpegError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written ({why}): free some space or give another path") from error
    return len(writer.episodes)


class _Writer:
    """The files of a data set while they are written."""

    def __init__(
        self,
        folder: Path,
        fps: float,
        version: Version,
        pictures: Pictures,
        bounds: ActionBounds | None,
        robot: Robot | None,
        robot_type: str,
        data_mb: float,
        video_mb: float,
    ) -> None:
        self.folder, self.fps, self.version, self.pictures = folder, fps, version, pictures
        self.bounds, self.robot, self.robot_type = bounds, robot, robot_type
        self.data_bytes, self.video_bytes = data_mb * 1e6, video_mb * 1e6
        self.episodes: list[dict[str, Any]] = []
        self.stats: list[dict[str, Any]] = []
        self.tasks: dict[str, int] = {}
        self.rows = 0
        self._first: Trajectory | None = None
        self._table: Any = None
        self._table_bytes = 0
        self._videos: dict[str, VideoWriter] = {}
        self._files: dict[str, int] = {}  # number of the open file, of "data" and of each view's feature

    def add(self, trajectory: Trajectory) -> None:
        """Write one episode."""
        if not isinstance(trajectory, Trajectory):
            raise UserError(f"trajectory is a {type(trajectory).__name__}; it should be a Trajectory")
        trajectory.check()
        self._check_fits(trajectory)
        number, rows = len(self.episodes), len(trajectory.frames)
        text = trajectory.instruction
        columns = self._columns(trajectory, number, self.tasks.setdefault(text, len(self.tasks)))
        stats = {key: of_numbers(values) for key, values in columns.items()}
        episode = {"episode_index": number, "tasks": [text], "length": rows}
        episode |= {"dataset_from_index": self.rows, "dataset_to_index": self.rows + rows}
        for key, frames in zip(self._keys(), np.moveaxis(trajectory.frames, 1, 0), strict=True):
            stats[key] = of_pictures(frames)
            if self.pictures != "png":
                episode |= self._add_video(key, number, frames)
            else:
                columns[key] = [png(frame) for frame in frames]
        episode |= self._add_rows(columns, number)
        for name in ("task", "start", "split", "source"):
            episode[OWN + name] = getattr(trajectory, name)
        camera = trajectory.camera
        episode[OWN + "camera"] = None if camera is None else [float(x) for x in camera.ravel()]
        self.episodes.append(episode)
        self.stats.append(stats)
        self.rows += rows

    def close(self) -> None:
        """Close the files that are open."""
        for video in self._videos.values():
            video.close()
        self._videos.clear()
        if self._table is not None:
            self._table.close()
            self._table = None

    def finish(self) -> None:
        """Write what describes the data set, info.json last."""
        if not self.episodes:
            raise UserError("there are no trajectories to write")
        meta = self.folder / "meta"
        meta.mkdir(exist_ok=True)
        if self.version == "v2.1":
            tasks = [{"task_index": number, "task": text} for text, number in self.tasks.items()]
            _write_lines(meta / "tasks.jsonl", tasks)
            _write_lines(meta / "episodes.jsonl", [_of_v2(episode) for episode in self.episodes])
            numbered = [{"episode_index": i, "stats": stats} for i, stats in enumerate(self.stats)]
            _write_lines(meta / "episodes_stats.jsonl", numbered)
        else:
            self._write_tables(meta)
        _write_json(meta / "info.json", self._info())

    def _check_fits(self, trajectory: Trajectory) -> None:
        if self._first is None:
            self._first = trajectory
            size = trajectory.frames.shape[2:4]
            if self.pictures != "png" and any(n % 2 for n in size):
                raise UserError(f"videos have even sizes, and the frames are {list(size)}: use pictures='png'")
        pair, names = (self._first, trajectory), ("trajectory 0", f"trajectory {len(self.episodes)}")
        check_alike(names, [(t.proprio, t.actions, t.camera, t.views, t.frames.shape[2:4]) for t in pair])

    def _keys(self) -> list[str]:
        return [f"observation.images.{view}" for view in self._first.views]

    def _columns(self, trajectory: Trajectory, number: int, task: int) -> dict[str, np.ndarray]:
        steps = np.arange(len(trajectory.frames))
        kept = np.minimum(steps, len(trajectory.actions) - 1)
        actions = trajectory.actions if self.bounds is None else self.bounds.restored(trajectory.actions)
        success = trajectory.success[kept]
        return {
            "observation.state": trajectory.proprio,
            "action": actions[kept],
            "next.reward": success.astype(np.float32),
            "next.success": success,
            "next.done": steps == steps[-1],
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(steps), number),
            "index": self.rows + steps,
            "task_index": np.full(len(steps), task),
        }

    def _add_rows(self, columns: dict[str, Any], number: int) -> dict[str, int]:
        arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        arrays = {key: _array(values) for key, values in columns.items()}
        about = {"info": {"features": {key: _hub_feature(values) for key, values in columns.items()}}}
        table = arrow.table(arrays).replace_schema_metadata({"huggingface": json.dumps(about)})
        if self._table is not None and (self.version == "v2.1" or self._table_bytes >= self.data_bytes):
            self._table.close()
            self._table = None
        if self._table is None:
            path = self._path(0, "data", number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = parquet.ParquetWriter(path, table.schema, write_page_checksum=True)
            self._table_bytes = 0
        self._table.write_table(table)
        self._table_bytes += table.nbytes
        return self._place("data")

    def _add_video(self, key: str, number: int, frames: np.ndarray) -> dict[str, Any]:
        video = self._videos.get(key)
        if video is not None and (self.version == "v2.1" or video.bytes >= self.video_bytes):
            video.close()
            video = None
        if video is None:
            size = frames.shape[1:3]
            video = self._videos[key] = VideoWriter(self._path(1, key, number), self.pictures, self.fps, size)
        begin = video.frames
        for frame in frames:
            video.add(frame)
        times = {"from_timestamp": begin / self.fps, "to_timestamp": video.frames / self.fps}
        return {f"videos/{key}/{name}": value for name, value in times.items()} | self._place(key)

    def _path(self, kind: int, key: str, number: int) -> Path:
        self._files[key] = file = self._files.get(key, -1) + 1
        place = {"chunk_index": file // CHUNK, "file_index": file % CHUNK, "video_key": key}
        place |= {"episode_chunk": number // CHUNK, "episode_index": number}
        return self.folder / PATHS[self.version][kind].format(**place)

    def _place(self, key: str) -> dict[str, int]:
        prefix, file = ("data" if key == "data" else f"videos/{key}"), self._files[key]
        return {f"{prefix}/chunk_index": file // CHUNK, f"{prefix}/file_index": file % CHUNK}

    def _write_tables(self, meta: Path) -> None:
        arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        tasks = {"task_index": list(self.tasks.values()), "task": list(self.tasks)}
        # LeRobot takes the texts for the index of a table of pandas.
        kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": of_numpy, "metadata": None}
            for name, (kind, of_numpy) in kinds.items()
        ]
        index = {"index_columns": ["task"], "columns": columns, "column_indexes": [], "pandas_version": "2.3.3"}
        about = {"pandas": json.dumps(index)}
        parquet.write_table(arrow.table(tasks).replace_schema_metadata(about), meta / "tasks.parquet")
        rows = []
        for episode, stats in zip(self.episodes, self.stats, strict=True):
            flat = {f"stats/{key}/{name}": value for key, found in stats.items() for name, value in found.items()}
            rows.append(episode | flat | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        path = meta / "episodes/chunk-000/file-000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path, write_page_checksum=True)
        _write_json(meta / "stats.json", merged(self.stats))

    def _info(self) -> dict[str, Any]:
        first, count, (data, video) = self._first, len(self.episodes), PATHS[self.version]
        has_video = self.pictures != "png"
        proprio, action = (first.proprio.shape[1], first.actions.shape[1])
        names = (self.robot.proprio, self.robot.action) if self.robot else ([str(i) for i in range(proprio)], None)
        names = (names[0], names[1] or [str(i) for i in range(action)])
        features = {
            "observation.state": _feature("float32", [proprio], list(names[0])),
            "action": _feature("float32", [action], list(names[1])),
        }
        h, w = first.frames.shape[2:4]
        for key in self._keys():
            features[key] = _feature("video" if has_video else "image", [h, w, 3], ["height", "width", "channels"])
            if has_video:
                features[key]["info"] = _video_info(self.pictures, self.fps, h, w)
        for key, dtype in {**NEXT, "timestamp": "float32", **dict.fromkeys(COUNTED[1:], "int64")}.items():
            features[key] = _feature(dtype, [1], None)
        totals = {"total_episodes": count, "total_frames": self.rows, "total_tasks": len(self.tasks)}
        if self.version == "v2.1":
            videos = count * len(first.views) if has_video else 0
            totals |= {"total_videos": videos, "total_chunks": -(-count // CHUNK), "chunks_size": CHUNK}
        else:
            sizes = {"data_files_size_in_mb": self.data_bytes / 1e6, "video_files_size_in_mb": self.video_bytes / 1e6}
            totals |= {"chunks_size": CHUNK, **{name: max(1, round(size)) for name, size in sizes.items()}}
        return {
            "codebase_version": self.version,
            "robot_type": self.robot_type,
            **totals,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{count}"},
            "data_path": data,
            "video_path": video if has_video else None,
            "features": features,
        }


def _of_v2(episode: dict[str, Any]) -> dict[str, Any]:
    own = {key.removeprefix(OWN): value for key, value in episode.items() if key.startswith(OWN)}
    return {key: episode[key] for key in ("episode_index", "tasks", "length")} | {OWN.rstrip("/"): own}


def _array(values: np.ndarray | list[bytes]) -> Any:
    arrow = need("pyarrow")
    if isinstance(values, list):
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        return arrow.array([{"bytes": value, "path": None} for value in values], kind)
    if values.ndim == 1 or values.shape[1] == 1:
        return arrow.array(values.ravel())
    return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])


def _hub_feature(values: np.ndarray | list[bytes]) -> dict[str, Any]:
    """What the package `datasets` calls the kind of a column."""
    if isinstance(values, list):
        return {"_type": "Image"}
    value = {"dtype": str(values.dtype), "_type": "Value"}
    if values.ndim == 1 or values.shape[1] == 1:
        return value
    return {"feature": value, "length": values.shape[1], "_type": "Sequence"}


def _feature(dtype: str, shape: list[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def _video_info(codec: str, fps: float, height: int, width: int) -> dict[str, Any]:
    about = {"height": height, "width": width, "codec": codec, "pix_fmt": "yuv420p", "is_depth_map": False}
    about |= {"fps": fps, "channels": 3}
    return {f"video.{name}": value for name, value in about.items()} | {"has_audio": False}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=4, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _write_lines(path: Path, documents: list[dict[str, Any]]) -> None:
    lines = (json.dumps(document, ensure_ascii=False, allow_nan=False) for document in documents)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
