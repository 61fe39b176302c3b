"""The packages that LeRobot's files need, imported where they are used, and their errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from worldenv.data.formats.hdf5 import DAMAGE, TrajectoryFormatError
from worldenv.errors import UserError


def need(name: str) -> ModuleType:
    """The module of that name. Raises UserError if its package is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'LeRobot\'s files need {error.name or name}: pip install "worldenv[lerobot]"') from error


@contextmanager
def reading(path: Path, where: str = "") -> Iterator[None]:
    """Errors on damaged contents become a TrajectoryFormatError that says in which file."""
    try:
        yield
    except (TrajectoryFormatError, MemoryError):
        raise
    except (*DAMAGE, need("pyarrow").ArrowException, need("av").FFmpegError) as error:
        place = f"{where}: " if where else ""
        what = " ".join(str(error).split())
        raise TrajectoryFormatError(f"{path}: {place}{what}") from error
