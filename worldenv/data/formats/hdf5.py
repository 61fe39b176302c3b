"""HDF5 files that may be damaged or lie, read so that what is wrong with them is said in one line."""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldenv.errors import UserError
from worldenv.files import NO_LOCKS

# What h5py raises on files that are damaged. HDF5 has no error of its own.
DAMAGE = (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, AttributeError)
OPEN_FILES = 64
MAX_COMPRESSION = 1100  # the limit of gzip is 1032
SMALL_BYTES = 2**16  # the limit of attributes; below it an array may claim what it likes


class TrajectoryFormatError(UserError):
    """A trajectory file that cannot be read: names the file, the group in it and what is wrong."""


class OpenFiles:
    """HDF5 files that are open for reading in this process; the least recently used is closed first.

    Copies in other processes, forked or spawned, open the files again: HDF5 cannot share them. One thread at a time
    reads.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._begin()

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)

    @contextmanager
    def use(self, path: Path) -> Iterator[h5py.File]:
        """The open file, for reading within the block. Raises TrajectoryFormatError if it cannot be opened."""
        if self._process != os.getpid():
            self.close()  # the handles of the parent, of which a fork has copies
            self._begin()
        with self._lock:
            file = self._files.pop(path, None) or open_file(path)
            self._files[path] = file
            while len(self._files) > self.limit:
                self._files.popitem(last=False)[1].close()
            yield file

    def close(self) -> None:
        """Close all files; the next use opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()


def open_file(path: Path) -> h5py.File:
    """Open for reading. Where the file system has no locks, none is taken."""
    if not path.is_file():
        raise TrajectoryFormatError(f"{path}: there is no such file")
    try:
        try:
            return h5py.File(path, "r", locking="best-effort")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return h5py.File(path, "r", locking=False)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise TrajectoryFormatError(f"{path}: another process has it open: close that one first") from error
        if isinstance(error, PermissionError):
            raise
        if "truncated file" in str(error):
            raise TrajectoryFormatError(f"{path}: truncated: its end is missing ({error})") from error
        raise TrajectoryFormatError(f"{path}: not an HDF5 file, or cut off in its header ({error})") from error
    except DAMAGE as error:
        raise TrajectoryFormatError(f"{path}: damaged ({error})") from error


@contextmanager
def named(path: Path, group: str) -> Iterator[None]:
    """Errors on damaged contents become a TrajectoryFormatError that says where they were met."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except DAMAGE as error:
        raise TrajectoryFormatError(f"{path}: {group}: {error}") from error


def member(group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at `key`, None if there is nothing. Raises ValueError if it lies in another file or behind a link."""
    found = group
    for name in key.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{key} is a link to another place: only what lies in the file itself is read")
        found = found[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise ValueError(f"{key} has its values in another file: only what lies in the file itself is read")
    return found


def array(
    group: h5py.Group,
    key: str,
    expected: str,  # "float [T, 7]": kind, then sizes; a letter other than T stands for any size but 0
    rows: int | None,  # T; None: any
) -> h5py.Dataset:
    """The data set at `key`. Raises ValueError if it is missing, not as expected, or claims more than is there."""
    dataset = member(group, key)
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError(f"the dataset {key} is missing")
    dtype, shape = dataset.dtype, dataset.shape  # h5py asks the file each time
    kind, extent = expected.removesuffix("]").split(" [")
    sizes = extent.split(", ")
    is_kind = {"uint8": dtype == np.uint8, "float": dtype.kind == "f", "number": True}[kind]
    fits = len(shape) == len(sizes) and all(
        found == int(size) if size.isdecimal() else found > 0 for found, size in zip(shape[1:], sizes[1:], strict=True)
    )
    if not is_kind or dtype.kind not in "fiub" or not fits:
        raise ValueError(f"{key} is {dtype} {list(shape)}, it should be {expected}")
    length = int(sizes[0]) if sizes[0].isdecimal() else rows
    if length is not None and shape[0] != length:
        raise ValueError(f"lengths differ: {key} has {shape[0]} rows, it should have {length} (actions: {rows})")
    claimed, stored = math.prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
    if claimed > SMALL_BYTES + MAX_COMPRESSION * stored:
        raise ValueError(f"{key} claims {claimed} bytes of values, but the file holds {stored}: it is incomplete")
    return dataset


def values(group: h5py.Group, key: str, expected: str, rows: int | None) -> np.ndarray:
    """All values of `array`. Raises ValueError if some are not finite."""
    found = array(group, key, expected, rows)[()]
    if found.dtype.kind == "f" and not (finite := np.isfinite(found)).all():
        bad = int(np.argmin(finite.reshape(len(found), -1).all(axis=1)))
        raise ValueError(f"{key} has values that are not finite (first at row {bad})")
    return found


def texts(owner: h5py.HLObject, name: str) -> list[str]:
    """An attribute of one or more strings, of variable or fixed length, bytes included. Raises ValueError."""
    found = np.asarray(_attribute(owner, name), dtype=object).ravel().tolist()
    found = [text.decode("utf-8") if isinstance(text, bytes) else text for text in found]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"the attribute {name} is {found!r}: it should be text")
    return found


def text(owner: h5py.HLObject, name: str) -> str:
    """An attribute of one string, or of pieces of one."""
    return "".join(texts(owner, name))


def whole_number(owner: h5py.HLObject, name: str) -> int:
    """An attribute that is one integer. Raises ValueError."""
    found = np.asarray(_attribute(owner, name))
    if found.size != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"the attribute {name} is {found.tolist()!r}: it should be an integer")
    return int(found.item())


def _attribute(owner: h5py.HLObject, name: str) -> Any:
    if name not in owner.attrs:
        raise ValueError(f"the attribute {name} is missing")
    attribute = owner.attrs.get_id(name)
    if attribute.shape is None:
        raise ValueError(f"the attribute {name} is empty")
    size = math.prod(attribute.shape) * attribute.dtype.itemsize
    if size > SMALL_BYTES:
        raise ValueError(f"the attribute {name} claims {size} bytes, more than an attribute can have")
    return owner.attrs[name]
