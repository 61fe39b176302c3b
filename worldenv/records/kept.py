"""Arrays that take long to make, kept in files, so that a resumed run reads them."""

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from worldenv.files import replace_whole
from worldenv.records.checksum import checksum

CONTENT = "content"  # the entry of a file that says what its arrays were made of, and their names
DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Kept:
    """A folder that keeps arrays which were made of something with the checksum `made_of`."""

    folder: Path | None  # None: nothing is kept
    made_of: str = ""
    writes: bool = True  # of several processes, one does

    def arrays(
        self,
        name: str,  # of the file, without its suffix
        make: Callable[[], dict[str, np.ndarray]],
        *of: np.ndarray,  # what these arrays are made of besides
    ) -> dict[str, np.ndarray]:
        """What `make` returns now, or returned when the file was written.

        The file is used if it was made of the same. Otherwise, or if it is damaged, which stderr says, the arrays are
        made anew, and the file is replaced as a whole. Raises UserError if it cannot be written.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.npz"
        made_of = checksum(self.made_of, {str(i): torch.from_numpy(array) for i, array in enumerate(of)})
        found = _read(path, made_of)
        if found is None:
            found = make()
            if self.writes:
                _write(path, made_of, found)
        return found


NOT_KEPT = Kept(None)


def _read(path: Path, made_of: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if damaged := file.zip.testzip():
                raise ValueError(f"the checksum of {damaged} differs")
            said, *names = file[CONTENT].tolist()
            return {name: file[name] for name in names} if said == made_of else None
    except FileNotFoundError:
        return None
    except DAMAGES as error:
        why = " ".join(str(error).split()) or type(error).__name__
        print(f"{path} is damaged ({why}): what it held is made anew", file=sys.stderr)
        return None


def _write(path: Path, made_of: str, arrays: dict[str, np.ndarray]) -> None:
    def write(made: Path) -> None:
        with made.open("wb") as file:
            np.savez_compressed(file, **{CONTENT: np.array([made_of, *arrays])}, **arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, write)
