"""HDF5 files opened for reading, so that damage neither hangs HDF5 nor is taken for something else."""

import fcntl
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from worldenv.data.formats.hdf5 import DAMAGE, TrajectoryFormatError
from worldenv.files import NO_LOCKS

OPEN_FILES = 64
HEAP = b"GCOL"
HEAP_HEADER = 16  # bytes, of a heap and of an object in it
MAX_HEAP_BYTES = 2**26
FLAGS_AT, WRITTEN = 11, 0b101  # of a superblock of version 3: open for writing, with readers beside or without
WHY = (  # a part of HDF5's message, and what it means
    ("truncated file", "truncated: its end is missing"),
    ("signature not found", "not an HDF5 file, or cut off in its header"),
    (
        "already open",
        "marked as open for writing: end the process that writes it; after a kill, `h5clear -s FILE` clears the mark",
    ),
)


class _Bytes(io.FileIO):
    """The file as HDF5 reads it: each piece of metadata is asked for where it begins.

    HDF5 2.0 loops for ever in a global heap, which holds the texts of variable length, that has an object of no size.
    """

    def readinto(self, buffer: memoryview) -> int:
        begin, count, view = self.tell(), 0, memoryview(buffer).cast("B")
        while count < len(view) and (more := super().readinto(view[count:])):
            count += more
        if count < len(view):
            raise OSError(f"truncated file: {begin + count} bytes are there")
        if view[: len(HEAP)].tobytes() == HEAP:
            _check_heap(self.fileno(), begin)
        return count


class ReadFile(h5py.File):
    """An HDF5 file for reading, locked against writers where the file system has locks. Raises OSError, DAMAGE."""

    def __init__(self, path: Path) -> None:
        self._bytes = _Bytes(path)
        try:
            try:
                fcntl.flock(self._bytes, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            super().__init__(self._bytes, "r")
            self._check_superblock()
        except BaseException:
            self._bytes.close()
            raise

    def _check_superblock(self) -> None:
        made = self.id.get_create_plist()
        if (sizes := made.get_sizes()) != (8, 8):
            raise ValueError(f"addresses and lengths of {sizes} bytes; files with 8 are read")
        flags = os.pread(self._bytes.fileno(), 1, made.get_userblock() + FLAGS_AT)
        if made.get_version()[0] >= 3 and flags[0] & WRITTEN:  # HDF5 looks in its own drivers only
            raise OSError("already open for writing")

    def close(self) -> None:
        """Close the file, and what was opened in it."""
        super().close()
        self._bytes.close()


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
        self._leave_parent()
        with self._lock:
            file = self._files.pop(path, None) or open_file(path)
            self._files[path] = file
            while len(self._files) > self.limit:
                self._files.popitem(last=False)[1].close()
            yield file

    def close(self) -> None:
        """Close all files; the next use opens them again."""
        self._leave_parent()
        with self._lock:
            self._close()

    def _leave_parent(self) -> None:
        if self._process != os.getpid():
            self._close()  # the handles of the parent, of which a fork has copies; its lock may be held for ever
            self._begin()

    def _close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()


def open_file(path: Path) -> ReadFile:
    """Open for reading. Where the file system has no locks, none is taken. Raises TrajectoryFormatError."""
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise TrajectoryFormatError(f"{path}: it is not a file")
    try:
        return ReadFile(path)
    except FileNotFoundError as error:
        raise TrajectoryFormatError(f"{path}: there is no such file") from error
    except BlockingIOError as error:
        raise TrajectoryFormatError(f"{path}: another process has it open: close that one first") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise TrajectoryFormatError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        why = next((why for part, why in WHY if part in str(error)), "damaged")
        raise TrajectoryFormatError(f"{path}: {why} ({error})") from error


def _check_heap(file: int, begin: int) -> None:
    """Raise OSError if HDF5 would not come to the end of the global heap that begins there."""
    header = os.pread(file, HEAP_HEADER, begin)
    size = int.from_bytes(header[8:], "little")
    if header[4:5] != b"\1" or size > os.fstat(file).st_size:
        return  # HDF5 refuses it
    if size > MAX_HEAP_BYTES:
        raise OSError(f"a heap claims {size} bytes of text")
    heap, at = os.pread(file, size, begin), HEAP_HEADER
    while at + HEAP_HEADER <= len(heap):
        number = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + 16], "little")
        step = HEAP_HEADER + -(-length // 8) * 8 if number else length  # object 0 is the free space, header included
        if not 0 < step <= len(heap) - at:
            raise OSError(f"the heap of texts is damaged: its object {number} claims {length} bytes")
        at += step
