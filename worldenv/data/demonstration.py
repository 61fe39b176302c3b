"""What a suite's expert leaves of an episode, and the file in which it waits to be used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.files import replace_whole

TRAJECTORY, EXTRA = "trajectory ", "extra "  # how the names of the arrays in a file begin


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One episode of an expert, successful or not. A trajectory has the actions that it meant, not those disturbed."""

    success: bool
    steps: int
    told: str  # what the expert did, and how it went
    trajectory: Trajectory | None = None  # None: it failed, or nobody looked
    extras: Mapping[str, np.ndarray | str] = field(default_factory=dict)  # what write_libero takes beside it
    places: np.ndarray | None = None  # [T + 1, 6] float32 m, x y z of the thing and of the goal, as seen by the robot


def save_demonstration(path: Path, demo: Demonstration) -> None:
    """Write a demonstration, whole or not at all. Raises UserError if the file cannot be written."""
    about = {"success": demo.success, "steps": demo.steps, "told": demo.told, "labels": None}
    arrays = {f"{EXTRA}{name}": value for name, value in demo.extras.items() if not isinstance(value, str)}
    about["texts"] = {name: value for name, value in demo.extras.items() if isinstance(value, str)}
    if demo.trajectory is not None:
        own = vars(demo.trajectory)
        arrays |= {f"{TRAJECTORY}{name}": value for name, value in own.items() if isinstance(value, np.ndarray)}
        about["labels"] = {name: value for name, value in own.items() if not isinstance(value, np.ndarray)}
    if demo.places is not None:
        arrays["places"] = demo.places

    def write(made: Path) -> None:
        with made.open("wb") as file:
            np.savez(file, said=np.array(json.dumps(about)), **arrays)

    replace_whole(path, write)


def load_demonstration(path: Path) -> Demonstration:
    """What `save_demonstration` has written. Raises UserError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["said"]))
            arrays = {name: file[name] for name in file.files if name != "said"}
        own, extras = (
            {name.removeprefix(begin): value for name, value in arrays.items() if name.startswith(begin)}
            for begin in (TRAJECTORY, EXTRA)
        )
        labels = about["labels"]
        trajectory = labels and Trajectory(**(labels | {"views": tuple(labels["views"])} | own))
        outcome = about["success"], about["steps"], about["told"]
        return Demonstration(*outcome, trajectory, extras | about["texts"], arrays.get("places"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and its episode is acted out again") from error
