"""stages.json: how long each stage took that made the models of a run, sessions that were interrupted included."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from worldenv.errors import UserError
from worldenv.files import read_json, write_text
from worldenv.records.metrics import LONGEST_S

STAGES = "stages.json"


def stage_seconds(run: Path) -> dict[str, float]:
    """Seconds by stage, in the order in which they were made. Raises UserError if the file is damaged."""
    path = run / STAGES
    times = read_json(path) if path.exists() else {}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
            raise UserError(f"{path}: {name[:80]!r} should be a number of seconds; it is damaged: delete it")
    return times


@contextmanager
def timed(run: Path, stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of a stage; what is killed at once, or meets a full disk, does not
    count. Raises UserError if the file is damaged."""
    times, began = stage_seconds(run), monotonic()
    try:
        yield
    finally:
        seconds = round(times.get(stage, 0.0) + monotonic() - began, 3)
        with suppress(UserError):  # the run matters more
            write_text(run / STAGES, json.dumps(times | {stage: seconds}))
