"""metrics.jsonl: one JSON line per step, appended; a kill tears the last line only."""

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worldenv.errors import UserError
from worldenv.files import cannot_be_written, parse_json, read_bytes, write_text

BYTES = 1 << 30  # more than the metrics of any run
BEGINNING = b'{"stage": '  # of every line
GREATEST = 2**63  # an integer beyond it is no count
LONGEST_S = 1e11  # of a run: 3,000 years

Line = dict[str, Any]


def read_lines(path: Path) -> tuple[list[Line], bool]:
    """All lines, and whether there is a last one that a kill has torn, which is left out.

    A file that does not exist has no lines. Raises UserError naming the line if another one is damaged.
    """
    if not os.path.lexists(path):
        return [], False
    texts = read_bytes(path, BYTES).split(b"\n")
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(_checked(parse_json(text)))
        except ValueError as error:
            if number == len(texts) and _is_torn(text, lines):  # no newline ends it
                return lines, text != b""
            raise UserError(
                f"{path}, line {number}, is damaged ({error}): restore the file from a copy, or remove that line"
            ) from error
    return lines, False


def _is_torn(text: bytes, lines: list[Line]) -> bool:
    """Whether this may be the beginning of a line, or what a power failure leaves of one: zeros."""
    return text[: len(BEGINNING)] == BEGINNING[: len(text)] or bool(lines) and not text.strip(b"\0")


def append_line(path: Path, line: Line) -> None:
    """Add a line. Raises UserError, with the file as it was, if the disk is full or the line could not be read."""
    try:
        _checked(line)
    except ValueError as error:
        raise UserError(f"{path} cannot hold {str(line)[:200]}: {error}") from error
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise cannot_be_written(path, error) from error


def rewrite(path: Path, lines: Iterable[Line]) -> None:
    """Replace the file by one with these lines."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _checked(line: Any) -> Line:
    if not isinstance(line, dict):
        raise ValueError("no JSON object")
    stage, step, time_s = line.get("stage"), line.get("step"), line.get("time_s")
    if not isinstance(stage, str) or isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < GREATEST:
        raise ValueError("`stage` should be a string, and `step` a whole number from 0")
    is_number = isinstance(time_s, int | float) and not isinstance(time_s, bool)
    if time_s is not None and not (is_number and 0 <= time_s <= LONGEST_S):
        raise ValueError("`time_s` should be a number of seconds")
    stage.encode()
    for name, value in line.items():
        name.encode()  # raises on half a surrogate pair, which JSON can write and UTF-8 cannot
        if name == "non_finite":
            if not isinstance(value, dict):
                raise ValueError("`non_finite` should be an object")
        elif not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"`{name[:80]}` is not a scalar")
        elif not (math.isfinite(value) if isinstance(value, float) else _is_moderate(value)):
            raise ValueError(f"`{name[:80]}` is out of range")
    return line


def _is_moderate(value: int | str | None) -> bool:
    return not isinstance(value, int) or -GREATEST < value < GREATEST
