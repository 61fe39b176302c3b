"""Paths as a user may give them."""

import os
from pathlib import Path

from worldenv.errors import UserError


def as_path(path: str | bytes | os.PathLike) -> Path:
    """The path, with `~` as the home folder. Raises UserError if it is none."""
    try:
        name = os.fsdecode(path)
    except TypeError as error:
        raise UserError(f"{path!r:.100} is no path: give a str or a Path") from error
    if not name or "\0" in name:
        raise UserError(f"{name!r:.100} is no path: it is empty or has a NUL character")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}: {error}") from error
