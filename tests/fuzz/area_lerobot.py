"""Data sets of LeRobot, damaged byte by byte, in what their JSON says, and in their tables."""

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, Silent

from worldenv.data.formats.lerobot.reader import LeRobotReader
from worldenv.data.formats.lerobot.writer import write_lerobot
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError

NUMBERS = ("proprio", "actions", "success", "camera")
KINDS = [(version, pictures) for version in ("v2.1", "v3.0") for pictures in ("png", "h264")]
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    1e308,
    2**63,
    10**30,
    0.5,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "a\0b",
    [],
    [None],
    {},
    {"a": 1},
)


def cases(rng: random.Random) -> Iterator[Case]:
    """Endless, and the same for the same rng."""
    while True:
        kind, seed = rng.choice(KINDS), rng.randrange(2**32)
        name = rng.choice(list(DAMAGES))
        yield Case(f"{' '.join(kind)}: {name} (seed {seed})", partial(_damage_and_read, kind, name, seed))


def _damage_and_read(kind: tuple[str, str], name: str, seed: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    rng, root = random.Random(seed), folder / "set"
    made = [_trajectory(number) for number in range(3)]
    write_lerobot(root, made, 20, version=kind[0], pictures=kind[1])
    damaged = DAMAGES[name](root, rng)
    try:
        found = list(LeRobotReader(root))
    except UserError as error:
        if str(root) not in str(error) or "\n" in str(error):
            raise Silent(f"the message does not name the data set in one line: {error}") from error
        raise
    if damaged is not None and damaged.parts[-3] == "data":  # tables have checksums
        for one in found:
            other = made[one.start]
            wrong = [part for part in NUMBERS if not np.array_equal(getattr(one, part), getattr(other, part))]
            if kind[1] == "png" and not np.array_equal(one.frames, other.frames):
                wrong.append("frames")
            if wrong:
                raise Silent(f"read, but with other {', '.join(wrong)}")


def _trajectory(number: int) -> Trajectory:
    rng, steps = np.random.default_rng(number), 4 + number
    return Trajectory(
        rng.integers(0, 256, (steps + 1, 1, 16, 24, 3), dtype=np.uint8),
        rng.normal(size=(steps + 1, 7)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rng.random(steps) > 0.5,
        rng.normal(size=(1, 3, 4)).astype(np.float32),
        ("agentview",),
        f"put block {number} down",
        "t",
        number,
        "train",
        "expert",
    )


def _files(root: Path, suffixes: tuple[str, ...] = (".parquet", ".mp4", ".json", ".jsonl")) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in suffixes)


def _bytes(root: Path, rng: random.Random) -> Path:
    path = rng.choice(_files(root))
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    return path


def _block(root: Path, rng: random.Random) -> Path:
    path = rng.choice(_files(root))
    content = bytearray(path.read_bytes())
    first, size = rng.randrange(len(content)), rng.choice((4, 16, 200))
    content[first : first + size] = rng.choice((b"\0", b"\xff")) * len(content[first : first + size])
    path.write_bytes(content)
    return path


def _end(root: Path, rng: random.Random) -> Path:
    path = rng.choice(_files(root))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path


def _gone(root: Path, rng: random.Random) -> None:
    rng.choice(_files(root)).unlink()


def _other(root: Path, rng: random.Random) -> None:
    one, other = rng.sample(_files(root), 2)
    shutil.copy(one, other)


def _link(root: Path, rng: random.Random) -> None:
    path = rng.choice(_files(root))
    path.unlink()
    path.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", path.name, "..", root.parent / "nothing")))


def _folder(root: Path, rng: random.Random) -> None:
    path = rng.choice(_files(root))
    path.unlink()
    path.mkdir()


def _said(root: Path, rng: random.Random) -> None:
    """Another value at some place in a JSON document."""
    path = rng.choice(_files(root, (".json", ".jsonl")))
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    at = rng.randrange(len(lines))
    document = json.loads(lines[at])
    owner, key = rng.choice(list(_places(document)))
    if rng.random() < 0.3:
        del owner[key]
    else:
        owner[key] = rng.choice(VALUES)
    lines[at] = json.dumps(document)
    path.write_text("\n".join(lines))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(pairs):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _column(root: Path, rng: random.Random) -> None:
    """Another column in some table."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = rng.choice(_files(root, (".parquet",)))
    table = parquet.ParquetFile(path).read()
    at = rng.randrange(table.num_columns)
    name, rows = table.column_names[at], len(table)
    made: dict[str, Callable[[], Any]] = {
        "null": lambda: arrow.nulls(rows),
        "texts": lambda: arrow.array(["x"] * rows),
        "huge": lambda: arrow.array([10**18] * rows),
        "below 0": lambda: arrow.array([-1] * rows),
        "NaN": lambda: arrow.array([float("nan")] * rows),
        "lists": lambda: arrow.array([[1.0, 2.0]] * rows),
        "ragged": lambda: arrow.array([[1.0] * (i % 3) for i in range(rows)]),
        "deep": lambda: arrow.array([[[1.0]]] * rows),
        "dictionary": lambda: arrow.array(["x"] * rows).dictionary_encode(),
        "dates": lambda: arrow.array([0] * rows, arrow.timestamp("s")),
        "decimals": lambda: arrow.array([0] * rows).cast(arrow.decimal128(20, 0)),
        "half": lambda: arrow.array(np.zeros(rows, np.float16)),
        "bytes": lambda: arrow.array([b"\x89PNG"] * rows),
    }
    table = table.set_column(at, name, [rng.choice(list(made.values()))()])
    if rng.random() < 0.2:
        table = table.append_column(name, table.column(at))  # a name twice
    parquet.write_table(table, path)


def _rows(root: Path, rng: random.Random) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = rng.choice(_files(root, (".parquet",)))
    table = parquet.ParquetFile(path).read()
    first = rng.randrange(len(table))
    changed = rng.choice((table.slice(first), table.slice(0, first), arrow.concat_tables([table, table.slice(first)])))
    parquet.write_table(changed, path)


DAMAGES: dict[str, Callable[[Path, random.Random], Path | None]] = {
    "other bytes": _bytes,
    "a block of one byte": _block,
    "cut off": _end,
    "a file is gone": _gone,
    "another file in its place": _other,
    "a link in its place": _link,
    "a folder in its place": _folder,
    "another value in JSON": _said,
    "another column": _column,
    "other rows": _rows,
}
