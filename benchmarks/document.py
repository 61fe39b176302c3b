"""The JSON file of a run of benchmarks, in pytest-benchmark's layout."""

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from worldenv import __version__
from worldenv.errors import UserError
from worldenv.nn.int8 import is_fast


def row(name: str, group: str, times: Sequence[float], facts: dict) -> dict:
    """One benchmark: its seconds, round by round, and what else is known of it."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else list(times) * 3
    stats = {
        "min": min(times),
        "max": max(times),
        "mean": statistics.mean(times),
        "stddev": statistics.pstdev(times),
        "median": median,
        "q1": low,
        "q3": high,
        "iqr": high - low,
        "rounds": len(times),
        "iterations": 1,
        "total": sum(times),
        "ops": len(times) / sum(times),
        "outliers": "",
        "data": list(times),
    }
    return {
        "name": name,
        "fullname": f"{group}::{name}",
        "group": group,
        "param": None,
        "params": None,
        "options": {},
        "stats": stats,
        "extra_info": facts,
    }


def document(benchmarks: list[dict], **facts) -> dict:
    """A whole file: machine, commit, date, the benchmarks and any other facts."""
    return {
        "datetime": datetime.now(UTC).isoformat(),
        "machine_info": {"node": platform.node(), "machine": platform.machine(), "worldenv": machine()},
        "commit_info": commit(),
        "version": "worldenv",
        "benchmarks": benchmarks,
        **facts,
    }


def machine() -> dict:
    """What figures depend on besides the source."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {
        "worldenv": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda,
        "cpu_isa": torch.backends.cpu.get_cpu_capability(),
        "int8": is_fast(),
        "threads": torch.get_num_threads(),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> dict:
    """Which source was measured: the commit, and whether files differ from it; unknown outside a git checkout."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip()

    try:
        return {"id": git("rev-parse", "HEAD") or None, "dirty": bool(git("status", "--porcelain"))}
    except FileNotFoundError:  # no git
        return {"id": None, "dirty": None}


def load(path: Path) -> dict:
    """Read such a file. Raises UserError if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("benchmarks"), list):
        raise UserError(f"{path} has no list of benchmarks; a file of `pytest benchmarks --benchmark-json` has")
    return found


def write(path: Path, found: dict) -> None:
    """Write a file; one that is there already is not overwritten: UserError."""
    if path.exists():
        raise UserError(f"{path} is there already; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
