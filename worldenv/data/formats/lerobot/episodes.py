"""Which episodes a data set lists, and where the rows and pictures of each are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldenv.data.formats.hdf5 import TrajectoryFormatError
from worldenv.data.formats.lerobot.info import Info
from worldenv.data.formats.lerobot.tables import Table
from worldenv.fields import shown
from worldenv.files import parse_json, read_bytes

MOST_ROWS = 10**7  # of an episode
JSONL_BYTES = 2**28
OWN = "worldenv/"  # begins the names of what this package adds: what is not in LeRobot's format
LABELS = ("task", "start", "split", "source", "camera")
TASK_COLUMNS = ("task", "__index_level_0__")  # pandas' name of an index without a name


@dataclass(frozen=True)
class Episode:
    """Where an episode lies."""

    number: int
    rows: int  # N
    tasks: tuple[str, ...]  # instructions
    table: Path
    videos: dict[str, tuple[Path, float]]  # feature -> file, and where the episode begins in it (s)
    labels: dict[str, Any]  # task, start, split, source, camera: of this package's own files


def read_episodes(info: Info) -> list[Episode]:
    """The episodes that the data set lists, in their order. Raises UserError."""
    listed = list(_of_v3(info) if info.is_v3 else _of_v2(info))
    found = {episode.number: episode for episode in listed}
    if not listed or len(found) < len(listed):
        problem = "lists an episode twice" if listed else "lists no episodes"
        raise TrajectoryFormatError(f"{info.folder / 'meta'}: the data set {problem}")
    return [found[number] for number in sorted(found)]


def read_tasks(info: Info) -> dict[int, str]:
    """The instruction of every task_index. Raises UserError."""
    if not info.is_v3:
        path = info.inside("meta/tasks.jsonl")
        pairs = [(line["task_index"], line["task"]) for line in _lines(path, ("task_index", "task"))]
    else:
        table = Table(path := info.inside("meta/tasks.parquet"))
        column = next((name for name in TASK_COLUMNS if name in table.columns), TASK_COLUMNS[0])
        pairs = [(row["task_index"], row[column]) for row in table.objects(["task_index", column])]
    for number, text in pairs:
        if not isinstance(number, int) or not isinstance(text, str):
            raise TrajectoryFormatError(f"{path}: task {shown(number)} is {shown(text)}; it should be a text")
    if len(found := dict(pairs)) < len(pairs):
        raise TrajectoryFormatError(f"{path}: a task_index is there twice")
    return found


def _of_v2(info: Info) -> Iterator[Episode]:
    path = info.inside("meta/episodes.jsonl")
    for line in _lines(path, ("episode_index", "tasks", "length")):
        number, rows, tasks = _checked(path, line)
        place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
        videos = {
            view.key: (info.file(info.video_path, video_key=view.key, **place), 0.0)
            for view in info.views
            if view.is_video
        }
        labels = line.get(OWN.rstrip("/"))
        if not isinstance(labels, dict | None):
            raise TrajectoryFormatError(f"{path}: episode {number} has the labels {shown(labels)}, not an object")
        yield Episode(number, rows, tasks, info.file(info.data_path, **place), videos, labels or {})


def _of_v3(info: Info) -> Iterator[Episode]:
    folder = info.inside("meta/episodes")
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise TrajectoryFormatError(f"{folder}: there is no chunk-<number>/file-<number>.parquet")
    keys = [view.key for view in info.views if view.is_video]
    parts = ("chunk_index", "file_index", "from_timestamp")
    wanted = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    wanted += [f"videos/{key}/{part}" for key in keys for part in parts]
    for path in paths:
        table = Table(info.inside(str(path.relative_to(info.folder))))
        own = [OWN + label for label in LABELS if OWN + label in table.columns]
        for row in table.objects([*wanted, *own]):
            number, rows, tasks = _checked(path, row)
            videos = {}
            for key in keys:
                chunk, file, begin = (_number(path, row, f"videos/{key}/{part}") for part in parts)
                video = info.file(info.video_path, video_key=key, chunk_index=int(chunk), file_index=int(file))
                videos[key] = video, float(begin)
            place = {f"{part}_index": int(_number(path, row, f"data/{part}_index")) for part in ("chunk", "file")}
            labels = {key.removeprefix(OWN): row[key] for key in own if row[key] is not None}
            yield Episode(number, rows, tasks, info.file(info.data_path, **place), videos, labels)


def _lines(path: Path, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(read_bytes(path, JSONL_BYTES).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = parse_json(text)
        except ValueError as error:
            raise TrajectoryFormatError(f"{path}: line {number} is not valid JSON ({error})") from error
        if not isinstance(line, dict) or any(key not in line for key in keys):
            raise TrajectoryFormatError(f"{path}: line {number} should be an object with {', '.join(keys)}")
        yield line


def _checked(path: Path, row: dict[str, Any]) -> tuple[int, int, tuple[str, ...]]:
    number, rows, tasks = (row[key] for key in ("episode_index", "length", "tasks"))
    if not _is_whole(number) or not 0 <= number < 10**9:
        raise TrajectoryFormatError(f"{path}: episode_index is {shown(number)}; it should be a whole number from 0")
    if not _is_whole(rows) or not 2 <= rows <= MOST_ROWS:
        raise TrajectoryFormatError(
            f"{path}: episode {number} has the length {shown(rows)}; an action leads from one row to the next, so "
            "there should be at least 2"
        )
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise TrajectoryFormatError(f"{path}: episode {number} has the tasks {shown(tasks)}; they should be texts")
    return number, rows, tuple(tasks)


def _number(path: Path, row: dict[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**9:
        raise TrajectoryFormatError(
            f"{path}: {key} of episode {row['episode_index']} is {shown(value)}; it should be a number from 0"
        )
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
