"""A run on disk: configuration, metrics, result, checkpoints and videos. What a command printed is found here again."""

import json
import math
import os
import shutil
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self

from worldenv.errors import UserError
from worldenv.records.checkpoint import atomic_write_text

PROBE_BYTES = 1 << 20  # more than the metrics of a run; a disk without that room is refused before any work
ABSENT = object()  # the value of a field that a configuration lacks


def default_run_path(name: str) -> Path:
    """runs/<name>-<YYYYmmdd-HHMMSS>, in local time."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


class RunFolder:
    """An existing run folder. `RunFolder(path)` reads it; `create` and `resume` give one to write to.

    config.json · metrics.jsonl · result.json · checkpoints/ · videos/ · tensorboard/ (a copy of metrics.jsonl)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.videos = self.path / "videos"
        if not self._config_path.is_file():
            raise UserError(f"run folder {self.path} does not exist or is not a run: it has no config.json")
        self.config: dict[str, Any] = _read_json(self._config_path)
        self.dropped_lines = 0  # torn lines of metrics.jsonl that resume removed
        self._events = None
        lines, _ = self._read_lines()
        self._began_s = monotonic() - max((line.get("time_s") or 0.0 for line in lines), default=0.0)

    @classmethod
    def create(cls, path: str | os.PathLike, config: dict[str, Any]) -> Self:
        """Make the folder. Raises UserError if it holds anything already, or if the disk is full or read-only."""
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"run folder {path} is not empty: use --resume to continue it or choose another --run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            _probe(path)
            (path / "config.json").touch(exist_ok=False)  # if two runs get here at once, one fails
            atomic_write_text(path / "config.json", _dump(config, indent=2))
            folder = cls(path)
            folder._make_subfolders()
        except FileExistsError as error:
            raise UserError(
                f"run folder {path} cannot be written: another run has taken it, or it is a file; choose another --run"
            ) from error
        except OSError as error:
            raise UserError(
                f"run folder {path} cannot be written ({error.strerror}): free some space or choose another --run"
            ) from error
        return folder

    @classmethod
    def resume(cls, path: str | os.PathLike, config: dict[str, Any]) -> Self:
        """Open a folder to continue it; drops torn lines of metrics.jsonl.

        Raises UserError if it does not exist, if `config` differs from the saved one (each field is named with
        both values), or if it cannot be written.
        """
        folder = cls(path)
        changes = _differences(folder.config, json.loads(_dump(config)))
        if changes:
            raise UserError(
                f"run folder {folder.path} was made with another configuration: {'; '.join(changes)}. "
                "Give the saved values to resume it, or choose another --run"
            )
        try:
            _probe(folder.path)
            folder._make_subfolders()
            lines, folder.dropped_lines = folder._read_lines()
            folder._rewrite(lines)
        except OSError as error:
            raise UserError(
                f"run folder {folder.path} cannot be written ({error.strerror}): free some space or copy it elsewhere"
            ) from error
        return folder

    def log(self, stage: str, step: int, **scalars: Any) -> None:
        """Append one line to metrics.jsonl and one point per scalar to TensorBoard.

        `time_s`, the run's age without the pauses, is added unless given. A non-finite value is written as null,
        and its name under "non_finite". Raises UserError if a value is no scalar or the disk refuses the line.
        """
        line: dict[str, Any] = {"stage": stage, "step": int(step), "time_s": round(monotonic() - self._began_s, 3)}
        non_finite = {}
        for name, value in scalars.items():
            line[name] = _scalar(name, value)
            if isinstance(line[name], float) and not math.isfinite(line[name]):
                non_finite[name], line[name] = str(line[name]), None
        if non_finite:
            line["non_finite"] = non_finite
        # Opened before the line is written: opening copies the lines that are already in the file.
        self._open_events()
        try:
            with self._metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._copy_to_events(line)
            self._events.flush()
        except OSError as error:
            raise UserError(f"{self._metrics_path} cannot be written ({error.strerror}): free some space") from error

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The lines of one stage in the order in which they were logged; a torn line is left out."""
        return [line for line in self._read_lines()[0] if line["stage"] == stage]

    def stages(self) -> list[str]:
        """The stages that logged anything, in order."""
        return list(dict.fromkeys(line["stage"] for line in self._read_lines()[0]))

    def truncate(self, stage: str, step: int) -> None:
        """Remove the lines of `stage` at or after `step`, so that a run resumed there does not log them twice."""
        lines, _ = self._read_lines()
        self._rewrite([line for line in lines if line["stage"] != stage or line["step"] < step])

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json; non-finite floats become null."""
        atomic_write_text(self.path / "result.json", _dump(result, indent=2))

    def result(self) -> dict[str, Any] | None:
        """What write_result wrote, or None while the run has not ended."""
        path = self.path / "result.json"
        return _read_json(path) if path.exists() else None

    def close(self) -> None:
        """Close the TensorBoard file; logging again opens a new one."""
        if self._events is not None:
            self._events.close()
            self._events = None

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def _make_subfolders(self) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        self.videos.mkdir(exist_ok=True)

    def _read_lines(self) -> tuple[list[dict[str, Any]], int]:
        """The complete lines, and the number of torn ones (a killed run leaves its last line unfinished)."""
        if not self._metrics_path.exists():
            return [], 0
        lines, torn = [], 0
        for text in self._metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                line = None
            if isinstance(line, dict) and "stage" in line and "step" in line:
                lines.append(line)
            else:
                torn += 1
        return lines, torn

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        self.close()
        atomic_write_text(self._metrics_path, "".join(json.dumps(line) + "\n" for line in lines))

    def _open_events(self) -> None:
        if self._events is not None:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import, so only commands that log do

        # Written again from metrics.jsonl: an event file cannot be truncated, and would show resumed steps twice.
        events_path = self.path / "tensorboard"
        shutil.rmtree(events_path, ignore_errors=True)
        self._events = SummaryWriter(str(events_path))
        for line in self._read_lines()[0]:
            self._copy_to_events(line)

    def _copy_to_events(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("stage", "step") and isinstance(value, int | float):
                self._events.add_scalar(f"{line['stage']}/{name}", value, line["step"])


def _probe(path: Path) -> None:
    probe = path / ".probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): the run cannot be read") from error


def _differences(old: Any, new: Any, field: str = "") -> list[str]:
    """Each field whose value differs, as `field was <old>, now <new>`."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in dict.fromkeys([*old, *new]):
            name = f"{field}.{key}" if field else key
            changes += _differences(old.get(key, ABSENT), new.get(key, ABSENT), name)
        return changes
    was, now = ("absent" if value is ABSENT else json.dumps(value) for value in (old, new))
    return [] if was == now else [f"{field} was {was}, now {now}"]
