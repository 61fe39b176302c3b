"""Data sets of trajectories on disk: a folder of HDF5 files, part-00000.h5 and so on, each complete when it appears."""

import contextlib
import errno
import os
import re
import secrets
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from worldenv.data.formats.demos import Demo, read_file, read_frames, read_steps
from worldenv.data.formats.hdf5 import DAMAGE, TrajectoryFormatError, listed, named
from worldenv.data.formats.layout import FRAMES_PER_CHUNK, Steps, count_demos, write_demo, write_header
from worldenv.data.formats.opened import OpenFiles, open_file
from worldenv.data.interrupts import uninterrupted
from worldenv.data.orientation import Orientation, check_orientation
from worldenv.data.paths import as_path
from worldenv.data.trajectory import Trajectory, check_text
from worldenv.errors import UserError
from worldenv.files import lock, sync

__all__ = ["Trajectory", "TrajectoryFormatError", "TrajectoryReader", "TrajectoryWriter", "read_episodes"]

PART = re.compile(r"part-(\d{5,})\.h5")
UNFINISHED = re.compile(r"\.part-\d{5,}\.[0-9a-f]+\.h5")
LOCK = ".writer.lock"
INDEX_ROOM_BYTES = 2**19  # more than the index of a file grows by one trajectory
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TrajectoryWriter:
    """Write trajectories into a folder, `per_file` to a part.

    The open part has a temporary name. It gets its own, once it is safe on disk, when it is full, on `close`, and when
    the `with` block is left, by an error or Ctrl-C too. A kill loses the open part only: its file stays until the next
    writer with `append` removes it. `len` counts the trajectories of finished parts and of the open one.

    Threads take turns; a forked copy cannot write. Raises UserError if the folder is not empty and `append` is False,
    if it cannot be made or written, if somebody else writes there; TrajectoryFormatError on appending to a part that
    is damaged or of another kind.
    """

    def __init__(self, folder: str | Path, per_file: int = 100, append: bool = False) -> None:
        if isinstance(per_file, bool) or not isinstance(per_file, int) or per_file < 1:
            raise UserError(f"per_file is {per_file!r}: a part holds at least one trajectory")
        self.folder, self.per_file = as_path(folder), per_file
        self._process, self._turn = os.getpid(), threading.RLock()
        self._file: h5py.File | None = None
        self._is_doubtful = False
        _make_folder(self.folder, append)
        self._lock: int | None
        self._lock, is_alone = _lock(self.folder)
        try:
            self._finished = sum(_count_to_append(path) for path in part_paths(self.folder))
            _remove_unfinished(self.folder, is_alone)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "TrajectoryWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._finished + self._open_count()

    @uninterrupted()
    def write(self, trajectory: Trajectory) -> None:
        """Add one trajectory. Raises UserError naming the path, with all others kept, if the disk is full."""
        if not isinstance(trajectory, Trajectory):
            raise UserError(f"trajectory is a {type(trajectory).__name__}; it should be a Trajectory")
        trajectory.check()  # its arrays may have been changed
        if self._process != os.getpid():
            raise UserError(f"{self.folder}: the writer belongs to process {self._process}: open one folder in each")
        with self._turn:
            self._write(trajectory)

    def _write(self, trajectory: Trajectory) -> None:
        if self._lock is None:
            raise UserError(f"{self.folder}: the writer is closed")
        if self._file is None:
            self._begin_part()
        # HDF5 should never meet a full disk: it can lose the file and crash the process.
        self._reserve(trajectory)
        count, total = self._open_count(), int(self._data.attrs["total"])
        try:
            write_demo(self._data, trajectory)
            self._file.flush()
            self._trim()
        except BaseException as error:
            self._is_doubtful = True
            with contextlib.suppress(*DAMAGE):
                count_demos(self._data, count, total)
                del self._data[f"demo_{count}"]
            if isinstance(error, DAMAGE):
                raise _explained(error, self._temporary) from error
            raise
        if self._open_count() >= self.per_file:
            self._finish_part()

    @uninterrupted()
    def close(self) -> None:
        """Finish the open part; done already where the writer is used in a `with` block."""
        if self._process != os.getpid():
            return
        with self._turn:
            if self._lock is None:
                return
            try:
                self._finish_part()
            finally:
                os.close(self._lock)
                self._lock = None

    def _open_count(self) -> int:
        return int(self._data.attrs["num_demos"]) if self._file is not None else 0

    def _begin_part(self) -> None:
        self._number = _next_number(self.folder)
        self._temporary = self.folder / f".part-{self._number:05d}.{secrets.token_hex(4)}.h5"
        # Mode "x" opens with O_EXCL, which follows no link. Nobody else knows the name, so no lock is needed.
        try:
            _try_room(self._temporary)
            file = h5py.File(self._temporary, "x", libver=("earliest", "v108"), locking=False)
            self._data, self._is_doubtful = write_header(file), False
            file.flush()
        except DAMAGE as error:
            raise _explained(error, self._temporary) from error
        self._file = file

    def _reserve(self, trajectory: Trajectory) -> None:
        # Room for what does not compress, and for a chunk of each view that is filled up.
        chunks = FRAMES_PER_CHUNK * trajectory.frames[0].nbytes
        arrays = (trajectory.frames, trajectory.proprio, trajectory.actions, trajectory.success)
        cameras = 0 if trajectory.camera is None else trajectory.camera.nbytes
        room = int(1.01 * (sum(a.nbytes for a in arrays) + cameras)) + chunks + INDEX_ROOM_BYTES
        file = os.open(self._temporary, os.O_RDWR)
        try:
            os.posix_fallocate(file, self._file.id.get_filesize(), room)
        except OSError as error:
            if error.errno not in NO_ROOM:
                return  # a file system that cannot reserve: the write itself will say what is wrong
            self._trim()
            need = f"no room on the disk ({os.strerror(error.errno)}): {room / 1e6:.1f} MB are needed to go on"
            raise UserError(f"{self.folder}: {need}; free some, then append") from error
        finally:
            os.close(file)

    def _trim(self) -> None:
        os.truncate(self._temporary, self._file.id.get_filesize())

    def _finish_part(self) -> None:
        if self._file is None:
            return
        count, file, self._file = self._open_count(), self._file, None
        try:
            file.close()
            if not count:
                self._temporary.unlink()
                return
            if self._is_doubtful:
                with TrajectoryReader(self._temporary) as reader:
                    count = sum(1 for _ in reader)
            sync(self._temporary)
            while os.path.lexists(path := self.folder / f"part-{self._number:05d}.h5"):
                self._number += 1  # another writer's, where the file system has no locks
            self._temporary.rename(path)
            sync(self.folder)
        except TrajectoryFormatError:
            raise
        except DAMAGE as error:
            raise _explained(error, self._temporary) from error
        self._finished += count


class TrajectoryReader:
    """The trajectories of a data set, ours (a folder or one file) or a file of LIBERO or robomimic, in their order.

    All is checked on opening but the pictures, which are read with the trajectory. `instruction` and `orientation` (in
    which the pictures are stored; they are returned upright) are those of all trajectories, whatever the files say:
    needed where they say nothing. A reader may go to other processes, forked or spawned, and threads take turns. Raises
    TrajectoryFormatError naming the file, the group and what is wrong.
    """

    def __init__(
        self, path: str | Path, instruction: str | None = None, orientation: Orientation | None = None
    ) -> None:
        self.path, self._files = as_path(path), OpenFiles()
        if instruction is not None:
            check_text("instruction", instruction)
        try:
            found = read_episodes(self.path, self._files, instruction, orientation)
            self._demos = [demo for demo, _ in found]
        except BaseException:
            self.close()
            raise
        self.tasks = sorted({demo.labels["task"] for demo in self._demos})

    def __enter__(self) -> "TrajectoryReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._demos)

    def __getitem__(self, index: int) -> Trajectory:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {self.path}, which has {len(self)} trajectories")
        demo = self._demos[index]
        frames = np.empty((demo.steps + 1, len(demo.views), *demo.size, 3), np.uint8)
        with self._files.use(demo.path) as file:
            steps = read_steps(file, demo)
            read_frames(file, demo, np.arange(len(frames)), frames)
        with named(demo.path, f"/data/{demo.name}"):
            return Trajectory(frames, **steps, **demo.labels)

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[i] for i in range(len(self)))

    def close(self) -> None:
        """Close the files; reading opens them again."""
        self._files.close()


def read_episodes(
    path: Path, files: OpenFiles, instruction: str | None = None, orientation: Orientation | None = None
) -> Iterator[tuple[Demo, Steps]]:
    """All trajectories of a folder or file but for their frames, checked as TrajectoryReader says."""
    if orientation is not None:
        check_orientation(orientation)
    paths = part_paths(path) if os.path.isdir(path) else [path]
    if not paths:
        raise TrajectoryFormatError(_without_parts(path))
    for part in paths:
        with files.use(part) as file:
            yield from read_file(part, file, instruction, orientation)


def part_paths(folder: Path) -> list[Path]:
    """The finished parts of a data set in their order. Raises TrajectoryFormatError if the folder cannot be read."""
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise TrajectoryFormatError(f"{folder}: cannot be read ({error.strerror})") from error
    numbers = {path: int(match[1]) for path in found if (match := PART.fullmatch(path.name))}
    return sorted(numbers, key=numbers.get)


def _without_parts(folder: Path) -> str:
    found = {path.name for path in folder.iterdir()}
    if {"meta", "data"} <= found:
        return f"{folder}: a data set of LeRobot (meta, data): read it with LeRobotReader, or use worldenv-convert"
    if files := sorted(name for name in found if name.endswith((".hdf5", ".h5"))):
        return f"{folder}: the folder has no part-<number>.h5: name one of its files ({listed(files)})"
    return f"{folder}: the folder has no part-<number>.h5 (found {listed(found)})"


def _make_folder(folder: Path, append: bool) -> None:
    try:
        folder.mkdir(exist_ok=True)
        is_empty = all(path.name == LOCK for path in folder.iterdir())
    except FileNotFoundError as error:
        raise UserError(f"{folder}: the folder {folder.parent} does not exist; make it first") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is a file: trajectories are written into a folder; give another path") from error
    except OSError as error:
        raise _explained(error, folder) from error
    if not append and not is_empty:
        raise UserError(f"{folder} is not empty: use append=True to add to it, or give another path")


def _lock(folder: Path) -> tuple[int, bool]:
    """The lock file, open, and whether it is certain that nobody else writes here."""
    try:
        locked = lock(folder / LOCK)
    except OSError as error:
        raise _explained(error, folder / LOCK) from error
    if locked is None:
        raise UserError(f"{folder}: another writer is at work there; wait until it ends, or give another path")
    return locked


def _remove_unfinished(folder: Path, is_alone: bool) -> None:
    left = sorted(path for path in folder.iterdir() if UNFINISHED.fullmatch(path.name))
    if left and not is_alone:
        names = ", ".join(path.name for path in left)
        warnings.warn(f"{folder}: {names} may be left from a killed writer: remove it if so", stacklevel=3)
        return
    for path in left:
        path.unlink()


def _next_number(folder: Path) -> int:
    return max((int(PART.fullmatch(path.name)[1]) + 1 for path in part_paths(folder)), default=0)


def _count_to_append(path: Path) -> int:
    with open_file(path) as file:
        demos = [demo for demo, _ in read_file(path, file)]
    if any(demo.foreign for demo in demos):
        raise TrajectoryFormatError(f"{path}: /data has no worldenv_format: append only to data of this package")
    return len(demos)


def _try_room(path: Path) -> None:
    """Raise OSError if there is no room for the index of a new file. HDF5 should never meet a full disk."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.posix_fallocate(file, 0, INDEX_ROOM_BYTES)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    finally:
        os.close(file)
        path.unlink()


def _explained(error: Exception, path: Path) -> UserError:
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return UserError(f"{path}: you may not write there ({error.strerror}): give another path")
    why = getattr(error, "strerror", None) or error
    return UserError(f"{path}: cannot be written ({why}): free some room or mend the disk, then append")
