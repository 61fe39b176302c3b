"""LeRobot's data sets as trajectories.

A row is what was seen and the action that followed, so an episode of N rows has N frames and N - 1 actions: the last
action leads to nothing that was recorded. The success after an action is next.success, or next.reward where that is 0
or 1. Task and instruction are LeRobot's task; `start` is the number of the episode.
"""

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from worldenv.data.formats.hdf5 import TrajectoryFormatError
from worldenv.data.formats.layout import Steps
from worldenv.data.formats.lerobot.episodes import Episode, read_episodes, read_tasks
from worldenv.data.formats.lerobot.extra import need, reading
from worldenv.data.formats.lerobot.info import Info, read_info
from worldenv.data.formats.lerobot.pictures import check_video, read_pictures, read_video
from worldenv.data.formats.lerobot.tables import Table
from worldenv.data.orientation import Orientation, check_orientation, upright
from worldenv.data.paths import as_path
from worldenv.data.trajectory import Trajectory, check_labels, check_steps, check_text
from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.robot.bounds import ActionBounds
from worldenv.robot.kinematics import is_number
from worldenv.robot.robot import Robot

NEAR = 0.25  # of the time between two rows: how far from its place a row may be


class LeRobotTables:
    """The numbers of a data set, without its pictures.

    All is read and checked on opening. Episodes that are listed and whose table is not there are in `missing`, and a
    warning counts them. `state` and `action` name the features; None: observation.state or state, action or actions.
    Raises UserError naming the file and what is wrong.
    """

    def __init__(
        self,
        folder: str | Path,
        state: str | None = None,
        action: str | None = None,
        views: Sequence[str] | None = None,
    ) -> None:
        need("pyarrow"), need("av")
        self.folder = as_path(folder)
        self.info: Info = read_info(self.folder, state, action, None if views is None else tuple(views))
        self._texts, found = read_tasks(self.info), read_episodes(self.info)
        self.episodes = [episode for episode in found if os.path.exists(episode.table)]
        self.missing = tuple(sorted({episode.number for episode in found} - {e.number for e in self.episodes}))
        if not self.episodes:
            raise TrajectoryFormatError(f"{found[0].table}: there is no such file, and none of the other episodes")
        if self.missing:
            warnings.warn(
                f"{self.folder}: the files of {len(self.missing)} of {len(found)} episodes are not there", stacklevel=3
            )
        self._columns = list(self._read())

    def __len__(self) -> int:
        return len(self.episodes)

    def state(self, index: int) -> np.ndarray:  # [N, P] float32
        """What the robot reports of itself at every row of an episode."""
        return self._columns[index]["state"]

    def action(self, index: int) -> np.ndarray:  # [N, A] float32
        """The recorded actions of an episode, in the robot's units."""
        return self._columns[index]["action"]

    def success(self, index: int) -> np.ndarray | None:  # [N] bool
        """Success after every action; None if the data set does not tell it."""
        return self._columns[index]["success"]

    def instruction(self, index: int) -> str:
        """The task of an episode. Raises UserError if it has several."""
        found = {self._texts.get(number) for number in self._columns[index]["task_index"].tolist()}
        if len(found) != 1 or None in found:
            problem = (
                "has rows of several tasks" if len(found) > 1 else "has a task_index that meta/tasks does not list"
            )
            raise self._error(index, f"{problem}: give the instruction yourself")
        return found.pop()

    def first_row(self, index: int) -> int:
        """Where the rows of an episode begin in its table."""
        return self._columns[index]["begin"]

    @cached_property
    def bounds(self) -> ActionBounds:
        """The least and greatest value of every number of the recorded actions."""
        return ActionBounds.of(self.action(i) for i in range(len(self)))

    @cached_property
    def robot(self) -> Robot:
        """The robot: its names, and the least and greatest values that it reports in these recordings."""
        states = [self.state(i) for i in range(len(self))]
        low, high = (np.stack([end(s, axis=0) for s in states]) for end in (np.min, np.max))
        names = self.info.state.names, self.info.action.names
        return Robot(*names, tuple(low.min(0).tolist()), tuple(high.max(0).tolist()))

    def _read(self) -> Iterator[dict[str, Any]]:
        opened: tuple[Path, Any] = (Path(), None)
        for index, episode in enumerate(self.episodes):
            if opened[0] != episode.table:
                opened = episode.table, self._read_file(episode.table)
            columns = opened[1]
            rows = np.flatnonzero(columns["episode_index"] == episode.number)
            if len(rows) != episode.rows:
                there = f"{len(rows)} rows, meta lists {episode.rows}"
                raise self._error(index, f"the table has {there}")
            if rows[-1] - rows[0] + 1 != len(rows):
                raise self._error(index, "its rows are not one after the other")
            part = {name: None if c is None else c[rows[0] : rows[-1] + 1] for name, c in columns.items()}
            self._check_times(index, part)
            yield part | {"begin": int(rows[0])}

    def _read_file(self, path: Path) -> dict[str, Any]:
        info = self.info
        sizes = {info.state.key: len(info.state.names), info.action.key: len(info.action.names)}
        sizes |= dict.fromkeys(("timestamp", "frame_index", "episode_index", "task_index"), 1)
        if info.success is not None:
            sizes[info.success] = 1
        table = Table(path)
        listed_rows = sum(episode.rows for episode in self.episodes if episode.table == path)
        if table.rows != listed_rows:
            raise TrajectoryFormatError(f"{path}: it has {table.rows} rows, but meta lists {listed_rows}")
        found = table.numbers(sizes)
        out = {name: found.pop(name)[:, 0] for name in ("timestamp", "frame_index", "episode_index", "task_index")}
        out["state"], out["action"] = (found[n.key].astype(np.float32) for n in (info.state, info.action))
        out["success"] = None
        if info.success is not None:
            told = found[info.success][:, 0]
            out["success"] = told > 0 if np.isin(told, (0, 1)).all() else None  # shaped rewards tell nothing
        return out

    def _check_times(self, index: int, part: dict[str, Any]) -> None:
        steps, fps = np.arange(len(part["state"])), self.info.fps
        if (part["frame_index"] != steps).any():
            raise self._error(index, "frame_index does not count its rows from 0")
        late = np.abs(part["timestamp"].astype(np.float64) - steps / fps) > NEAR / fps
        if late.any():
            row = int(np.argmax(late))
            raise self._error(
                index,
                f"row {row} has the timestamp {part['timestamp'][row]:.3f} s; at the {fps:g} frames/s of "
                f"meta/info.json it is {row / fps:.3f} s",
            )

    def _error(self, index: int, message: str) -> TrajectoryFormatError:
        episode = self.episodes[index]
        return TrajectoryFormatError(f"{episode.table}: episode {episode.number}: {message}")


class LeRobotReader:
    """The trajectories of a data set of LeRobot, v2.1 or v3.0, in the order of their episodes.

    All numbers are read and checked on opening, and the headers of the videos; pictures are decoded with the
    trajectory. A folder is read with `state`, `action` and `views` as LeRobotTables takes them. Raises UserError naming
    the file and what is wrong, also where a video is missing.
    """

    def __init__(
        self,
        folder: str | Path | LeRobotTables,
        *,
        orientation: Orientation = "upright",  # in which the pictures are stored; they are returned upright
        views: Sequence[str] | None = None,  # names or features; None: all cameras
        size: tuple[int, int] | None = None,  # h, w of the frames; None: as stored, the same for all views
        camera: np.ndarray | None = None,  # [V, 3, 4] world point (m) -> homogeneous pixel of the stored size, upright
        bounds: ActionBounds | None = None,  # of the recorded actions; None: they are in [-1, 1]
        succeeded: bool | Collection[int] | None = None,  # episodes that end in success; None: the data set tells it
        instruction: str | None = None,  # of all episodes; None: the data set's
        state: str | None = None,
        action: str | None = None,
    ) -> None:
        check_orientation(orientation)
        if instruction is not None:
            check_text("instruction", instruction)
        is_read = isinstance(folder, LeRobotTables)
        self.tables = folder if is_read else LeRobotTables(folder, state, action, views)
        self.orientation, self.bounds, self._instruction, self._succeeded = orientation, bounds, instruction, succeeded
        sizes = {view.size for view in self.tables.info.views}
        if size is None and len(sizes) > 1:
            raise UserError(
                f"{self.tables.folder}: the views have pictures of {len(sizes)} sizes: give one, size=(h, w)"
            )
        self.size = _checked_size(sizes.pop() if size is None else size)
        self.views = tuple(view.name for view in self.tables.info.views)
        self._camera = None if camera is None else self._scaled(camera)
        self._check_videos()
        for index, episode in enumerate(self.tables.episodes):
            with reading(episode.table, f"episode {episode.number}"):
                check_labels(**self._labels(index))
                check_steps(**self._steps(index))

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, index: int) -> Trajectory:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {self.tables.folder}, which has {len(self)} trajectories")
        index %= len(self)
        info, episode = self.tables.info, self.tables.episodes[index]
        frames = np.empty((len(info.views), episode.rows, *self.size, 3), np.uint8)
        for view, out in zip(info.views, frames, strict=True):
            if view.is_video:
                path, begin_s = episode.videos[view.key]
                read_video(path, begin_s, info.fps, view.size, out)
            else:
                begin = self.tables.first_row(index)
                cells = Table(episode.table).pictures(view.key, begin, begin + episode.rows)
                read_pictures(episode.table, cells, view.size, out)
        frames = np.ascontiguousarray(upright(np.moveaxis(frames, 0, 1), self.orientation))
        with reading(episode.table, f"episode {episode.number}"):
            return Trajectory(frames, **self._steps(index), **self._labels(index))

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[i] for i in range(len(self)))

    def _steps(self, index: int) -> Steps:
        tables, episode = self.tables, self.tables.episodes[index]
        actions = tables.action(index)[:-1]
        with reading(episode.table, f"episode {episode.number}"):
            if self.bounds is not None:
                actions = self.bounds.scaled(actions)
            elif (most := np.abs(actions).max()) > 1:
                raise ValueError(
                    f"its actions reach {most:g}, and should be in [-1, 1]: give their bounds (the attribute `bounds` "
                    "of LeRobotTables has those of the recordings)"
                )
            camera = self._camera if self._camera is not None else self._own_camera(episode)
        return {
            "proprio": tables.state(index),
            "actions": actions,
            "success": self._success(index)[:-1],
            "camera": camera,
            "views": self.views,
        }

    def _success(self, index: int) -> np.ndarray:  # [N] bool
        told, number = self.tables.success(index), self.tables.episodes[index].number
        if self._succeeded is None:
            if told is None:
                raise UserError(
                    f"{self.tables.folder}: the data set does not say which episodes succeed (next.success, or "
                    "next.reward of 0 and 1): say so, succeeded=True, False, or their numbers"
                )
            return told
        is_success = self._succeeded if isinstance(self._succeeded, bool) else number in self._succeeded
        success = np.zeros(len(self.tables.state(index)), bool)
        success[-2:] = is_success
        return success

    def _labels(self, index: int) -> dict[str, Any]:
        episode = self.tables.episodes[index]
        instruction = self._instruction or self.tables.instruction(index)
        labels = {"task": instruction, "start": episode.number, "source": "expert"}
        labels["split"] = self.tables.info.split(episode.number)
        own = {name: value for name, value in episode.labels.items() if name in labels}
        return labels | own | {"instruction": instruction}

    def _check_videos(self) -> None:
        info = self.tables.info
        ends: dict[tuple[Path, tuple[int, int]], float] = {}
        for episode in self.tables.episodes:
            for view in info.views:
                if view.is_video:
                    path, begin_s = episode.videos[view.key]
                    ends[path, view.size] = max(ends.get((path, view.size), 0.0), begin_s + episode.rows / info.fps)
        for (path, size), end_s in ends.items():
            check_video(path, size, info.fps, end_s)

    def _own_camera(self, episode: Episode) -> np.ndarray | None:
        """The cameras that this package has written."""
        if (numbers := episode.labels.get("camera")) is None:
            return None
        one = 12 * len(self.views)
        counts = (one, one * episode.rows)  # of cameras that stand still; of one that moves
        if not isinstance(numbers, list) or len(numbers) not in counts or not all(map(is_number, numbers)):
            raise ValueError(
                f"its camera is {shown(numbers)}; it should be 12 finite numbers for each view, once or for each row"
            )
        moving = () if len(numbers) == one else (episode.rows,)
        return self._scaled(np.array(numbers, np.float32).reshape(*moving, -1, 3, 4), moving)

    def _scaled(self, camera: np.ndarray, moving: tuple[int, ...] = ()) -> np.ndarray:
        """The cameras of the frames, whose pixel centres lie at integer + 0.5, as those of the stored pictures."""
        views = self.tables.info.views
        camera = np.asarray(camera)
        if camera.shape != (*moving, len(views), 3, 4) or camera.dtype.kind != "f" or not np.isfinite(camera).all():
            raise UserError(f"camera is {list(camera.shape)}; it should be finite numbers [{len(views)}, 3, 4]")
        scale = [[self.size[1] / view.size[1], self.size[0] / view.size[0], 1] for view in views]
        return (np.array(scale)[:, :, None] * camera).astype(np.float32)


def _checked_size(size: Any) -> tuple[int, int]:
    if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(n, int) and 1 <= n <= 8192 for n in size):
        return tuple(size)
    raise UserError(f"size is {size!r:.100}; it should be (height, width) in pixels")
