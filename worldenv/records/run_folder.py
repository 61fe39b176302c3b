"""A run on disk: configuration, metrics, result, checkpoints and videos. What a command printed is found here again."""

import contextlib
import errno
import itertools
import json
import math
import os
import warnings
import weakref
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self

from worldenv.errors import UserError
from worldenv.files import (
    TEMPORARY,
    cannot_be_written,
    lock,
    read_json,
    reason,
    remove_temporary,
    sync,
    temporary_folder,
    write_text,
)
from worldenv.records.checksum import CHECKSUM, checksum
from worldenv.records.events import Events
from worldenv.records.metrics import Line, append_line, read_lines, rewrite
from worldenv.records.result import read_result

PROBE_BYTES = 1 << 20  # more than the metrics of a run; a disk without that room is refused before any work
LOCK = ".lock"
BEFORE = "before.json"
SUBFOLDERS = ("checkpoints", "videos")
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # renaming a folder over one with entries, or over a file


class FolderTaken(UserError):
    """A run folder that another run has, or that holds something else."""


def default_run_path(name: str) -> Path:
    """runs/<name>-<YYYYmmdd-HHMMSS>, in local time."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


class RunFolder:
    """An existing run folder. `RunFolder(path)` reads it; `create`, `begin` and `resume` give one to write to.

    config.json · metrics.jsonl · before.json (figures before practice) · result.json · checkpoints/ · videos/ ·
    tensorboard/ (a copy of metrics.jsonl) · .lock

    A folder has one writer: `.lock` is locked until `close`, the end of the `with` block, or the death of the process.
    Whatever is damaged raises UserError with the name of the file, when it is read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()  # a simulator may change the working directory
        self.checkpoints = self.path / "checkpoints"
        self.videos = self.path / "videos"
        if not os.path.lexists(self._config_path):
            raise UserError(f"run folder {Path(path)} does not exist or is not a run: it has no config.json")
        self.config: dict[str, Any] = read_json(self._config_path)
        self.dropped_lines = 0  # torn lines of metrics.jsonl that resume removed: 0 or 1
        self.earlier_s = 0.0  # that earlier sessions of a resumed run took, up to the last line that they logged
        self._events: Events | None = None
        self._copies_events = True
        self._opened_s = monotonic()
        self._unlock: weakref.finalize | None = None  # None: open for reading only

    @classmethod
    def create(cls, path: str | os.PathLike, config: dict[str, Any]) -> Self:
        """Make the folder, which appears whole: a kill leaves at most what the next `create` passes over.

        Raises FolderTaken if it holds anything already, or if somebody else has it open, UserError if the disk is full
        or read-only.
        """
        path, text = Path(path), _dump(config, indent=2)
        try:
            if os.path.lexists(path):
                return cls._make(path, path, text)
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(path) as beside:
                return cls._make(beside, path, text)
        except OSError as error:
            raise cannot_be_written(path, error) from error

    @classmethod
    def begin(cls, name: str, config: dict[str, Any]) -> Self:
        """Make runs/<name>-<date>-<time>; -2, -3 and so on is added where another run began in the same second."""
        first = default_run_path(name)
        for path in itertools.chain([first], (first.with_name(f"{first.name}-{i}") for i in itertools.count(2))):
            with contextlib.suppress(FolderTaken):
                return cls.create(path, config)
        raise AssertionError("there is always another number")

    @classmethod
    def resume(cls, path: str | os.PathLike) -> Self:
        """Open a folder to continue it; drops a torn line of metrics.jsonl and what killed writers left.

        Raises UserError if it does not exist, if somebody else has it open, or if it cannot be written.
        """
        folder = cls(path)
        descriptor, is_alone = _own(folder.path, folder.path)
        folder._hold(descriptor)
        try:
            folder.config = read_json(folder._config_path)  # again: the owner before may have changed it
            folder._take_up(is_alone)
        except OSError as error:
            folder.close()
            raise cannot_be_written(folder.path, error) from error
        except BaseException:
            folder.close()
            raise
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def age_s(self) -> float:
        """Seconds that the run took in all its sessions, without the pauses between them."""
        return self.earlier_s + monotonic() - self._opened_s

    def log(self, stage: str, step: int, **scalars: Any) -> None:
        """Append one line to metrics.jsonl and one point per scalar to TensorBoard.

        `time_s`, the run's age, is added unless given. A non-finite value is written as null, and its name under
        "non_finite". Raises UserError if a value is no scalar or the disk refuses the line. Where the copy for
        TensorBoard fails, a warning says so and the run goes on without it: the next session makes it anew.
        """
        self._check_open()
        line: Line = {"stage": stage, "step": int(step), "time_s": round(self.age_s, 3)}
        non_finite = {}
        for name, value in scalars.items():
            line[name] = _scalar(name, value)
            if isinstance(line[name], float) and not math.isfinite(line[name]):
                non_finite[name], line[name] = str(line[name]), None
        if non_finite:
            line["non_finite"] = non_finite
        append_line(self._metrics_path, line)
        self._copy_to_events(line)

    def metrics(self, stage: str) -> list[Line]:
        """The lines of one stage in the order in which they were logged; a torn last line is left out."""
        return [line for line in read_lines(self._metrics_path)[0] if line["stage"] == stage]

    def stages(self) -> list[str]:
        """The stages that logged anything, in order."""
        return list(dict.fromkeys(line["stage"] for line in read_lines(self._metrics_path)[0]))

    def truncate(self, stage: str, step: int) -> None:
        """Remove the lines of `stage` at or after `step`, so that a run resumed there does not log them twice."""
        self._check_open()
        self._close_events()
        lines, _ = read_lines(self._metrics_path)
        rewrite(self._metrics_path, (line for line in lines if line["stage"] != stage or line["step"] < step))

    def rewrite_config(self, config: dict[str, Any]) -> None:
        """Replace config.json and `config`."""
        self._check_open()
        write_text(self._config_path, _dump(config, indent=2))
        self.config = read_json(self._config_path)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json; non-finite floats become null."""
        self._check_open()
        write_text(self.path / "result.json", _dump(result, indent=2))

    def result(self) -> dict[str, Any] | None:
        """What write_result wrote, or None while the run has not ended. Raises UserError if a field is wrong."""
        path = self.path / "result.json"
        return read_result(path) if os.path.lexists(path) else None

    def write_before(self, figures: dict[str, Any]) -> None:
        """Write before.json, with a checksum; non-finite floats become null."""
        self._check_open()
        kept = json.loads(_dump(figures))
        write_text(self.path / BEFORE, _dump(kept | {CHECKSUM: checksum(kept, {})}, indent=2))

    def before(self) -> dict[str, Any] | None:
        """What write_before wrote, or None if it has not yet. Raises UserError if the file has been changed since."""
        path = self.path / BEFORE
        if not os.path.lexists(path):
            return None
        kept = read_json(path)
        if kept.pop(CHECKSUM, None) != checksum(kept, {}):
            raise UserError(f"{path}: damaged: its content does not have its checksum; delete it and resume the run")
        return kept

    def close(self) -> None:
        """Let others write to the folder. From now on this object is for reading."""
        self._close_events()
        if self._unlock is not None:
            self._unlock()

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @classmethod
    def _make(cls, place: Path, path: Path, config: str) -> Self:
        """Make a run folder at `place`, which becomes `path`; config.json, which makes it one, comes last."""
        _check_is_free(place)
        descriptor, _ = _own(place, path)
        try:
            if _entries(place):  # another run came in between
                raise FolderTaken(f"run folder {path} has just been taken by another run: choose another --run")
            _probe(place)
            _make_subfolders(place)
            write_text(place / "config.json", config)
            if place != path:
                _rename(place, path)
            folder = cls(path)
        except BaseException:
            os.close(descriptor)
            raise
        folder._hold(descriptor)
        return folder

    def _hold(self, descriptor: int) -> None:
        self._unlock = weakref.finalize(self, os.close, descriptor)

    def _take_up(self, is_alone: bool) -> None:
        """Bring a run folder that was left at any moment into order."""
        if is_alone:
            for place in (self.path, *(entry for entry in self.path.iterdir() if not entry.is_symlink())):
                remove_temporary(place)
        _probe(self.path)
        _make_subfolders(self.path)
        lines, torn = read_lines(self._metrics_path)
        rewrite(self._metrics_path, lines)
        self.dropped_lines = int(torn)
        self.earlier_s = max((line.get("time_s") or 0.0 for line in lines), default=0.0)

    def _check_open(self) -> None:
        if self._unlock is None or not self._unlock.alive:
            raise UserError(
                f"run folder {self.path} is open for reading only: use RunFolder.resume to write to it, and do not "
                "close it before"
            )

    def _copy_to_events(self, line: Line) -> None:
        if not self._copies_events:
            return
        try:
            if self._events is None:
                self._events = Events(self.path / "tensorboard")
                lines, _ = read_lines(self._metrics_path)
            else:
                lines = [line]
            for one in lines:
                self._events.add(one)
            self._events.flush()
        except OSError as error:
            self._copies_events = False
            self._close_events()
            warnings.warn(
                f"{self.path / 'tensorboard'}: the copy of metrics.jsonl for TensorBoard cannot be written "
                f"({reason(error)}): the run goes on without it",
                stacklevel=3,
            )

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _own(place: Path, path: Path) -> tuple[int, bool]:
    """The lock of the run folder `path`, which lies at `place` while it is made: what `lock` returns."""
    try:
        locked = lock(place / LOCK, path)
    except OSError as error:
        raise cannot_be_written(path / LOCK, error) from error
    if locked is None:
        raise FolderTaken(
            f"run folder {path} is in use by another process, or open in this one: wait until that ends, or choose "
            "another --run"
        )
    return locked


def _check_is_free(path: Path) -> None:
    """Raise FolderTaken unless the folder is empty, or holds no more than a `create` that was killed leaves."""
    if not path.is_dir():
        raise FolderTaken(f"run folder {path} cannot be written: it is a file or a broken link; choose another --run")
    entries = _entries(path)
    if "config.json" in entries:
        os.close(_own(path, path)[0])
        raise FolderTaken(
            f"run folder {path} is not empty: choose another --run, or continue a training run with --resume"
        )
    if entries:
        raise FolderTaken(f"run folder {path} is not empty, and holds no run: choose another --run")


def _entries(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if not _is_left_by_a_kill(entry)}


def _is_left_by_a_kill(entry: Path) -> bool:
    if entry.name in SUBFOLDERS:
        return not entry.is_symlink() and entry.is_dir() and not any(entry.iterdir())
    return entry.name == LOCK or TEMPORARY.fullmatch(entry.name) is not None


def _rename(place: Path, path: Path) -> None:
    try:
        place.rename(path)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        raise FolderTaken(f"run folder {path} has just been taken by another run: choose another --run") from error
    sync(path.parent)


def _probe(path: Path) -> None:
    """Raise OSError unless the disk has room."""
    with temporary_folder(path / "probe") as folder:
        (folder / "probe").write_bytes(bytes(PROBE_BYTES))
        sync(folder / "probe")


def _make_subfolders(path: Path) -> None:
    for name in SUBFOLDERS:
        (path / name).mkdir(exist_ok=True)


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return value.item()  # one element of NumPy or PyTorch: an int stays an int
    except (AttributeError, ValueError, RuntimeError) as error:
        raise UserError(f"log({name}=...): {type(value).__name__} is not a scalar; log one number per name") from error


def _dump(document: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(_finite(document), indent=indent, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
