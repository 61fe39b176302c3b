"""NumPy files whose arrays hold objects: pickles, of which only arrays, numbers and texts are read."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from worldenv.errors import UserError

# What a pickle of arrays and numbers names; numpy.core is the name before NumPy 2.
ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}
# What numpy and pickle raise for files that are no such arrays.
BROKEN = (pickle.UnpicklingError, OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, ImportError)


class _Program(Exception):
    """A pickle names something that could be executed."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how old protocols write bytes
        if (module, name) not in ALLOWED:
            raise _Program(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Program(f"the encoding {encoding}")
    return text.encode("latin1")


def read_objects(path: Path) -> list[Any]:
    """The objects of a one-dimensional array that np.save wrote: containers of arrays, numbers and texts.

    Raises UserError if the file is missing, damaged or no such array, or if it names anything that could be a program;
    that is then not executed.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if not dtype.hasobject or len(shape) != 1:
                raise UserError(f"{path} holds {dtype} {list(shape)}; a row of objects was expected: another file")
            found = _Plain(file).load()
    except _Program as error:
        raise UserError(
            f"{path} holds more than arrays and texts ({error}), which would be executed, so it is not read"
        ) from error
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{path} cannot be read ({str(error)[:100]}); copy it again") from error
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise UserError(f"{path} holds a {type(found).__name__}; a row of objects was expected: another file")
    return list(found)
