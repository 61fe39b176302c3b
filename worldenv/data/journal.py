"""A file whose changes appear all at once or not at all, even if the process is killed between two of its writes."""

import contextlib
import errno
import fcntl
import os
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 4096
ENTRY = struct.Struct("<QI")  # offset, length
CHECKSUM = struct.Struct("<I")


class JournaledFile:
    """A binary file, open for reading and writing, that HDF5 can use as its storage (`h5py.File(JournaledFile(path))`).

    What is written beyond the last commit goes straight to disk, where nothing refers to it yet. Changes before it are
    kept in memory until `commit` has written them to a journal beside the file and then into it; `recover` repeats the
    second half after a kill. HDF5 itself spreads one change over several writes, between which its index is broken.
    Raises BlockingIOError if another process has the file open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self._committed = self._end = os.fstat(self._file).st_size

    def reserve(self, room: int) -> None:
        """Take `room` bytes of disk for what is written next. Raises OSError, with the file as it was, if they lack."""
        try:
            os.posix_fallocate(self._file, self._end, room)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            need = f"the disk is full: {room / 1e6:.1f} MB are needed to go on; free some and append"
            raise OSError(error.errno, need, str(self._path)) from error

    def commit(self) -> None:
        """Make everything written since the last commit part of the file."""
        body = b"".join(ENTRY.pack(page * PAGE_BYTES, len(data)) + data for page, data in sorted(self._pages.items()))
        # The rest of the reserve goes first, which leaves room for the journal on a disk that is almost full.
        os.ftruncate(self._file, self._end)
        journal = _journal_path(self._path)
        journal.write_bytes(CHECKSUM.pack(zlib.crc32(body)) + body)
        _apply(self._file, body)
        self._pages.clear()
        self._committed = self._end
        journal.unlink()

    def close(self) -> None:
        """Forget what was not committed and release the file. A commit that an error ended is left to `recover`."""
        if not _journal_path(self._path).exists():
            os.ftruncate(self._file, self._committed)
        os.close(self._file)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        start, length = self._position, len(buffer)
        found = os.pread(self._file, length, start)
        buffer[: len(found)] = found
        for page in range(start // PAGE_BYTES, -(-(start + length) // PAGE_BYTES)) if self._pages else ():
            if page in self._pages:
                low = max(start, page * PAGE_BYTES)
                high = min(start + length, page * PAGE_BYTES + len(self._pages[page]))
                if high > low:
                    change = memoryview(self._pages[page])
                    buffer[low - start : high - start] = change[low - page * PAGE_BYTES : high - page * PAGE_BYTES]
        self._position += length
        return length

    def write(self, buffer: memoryview) -> int:
        data, offset = memoryview(buffer).cast("B"), self._position
        boundary = max(0, min(len(data), self._committed - offset))
        written = 0
        while written < boundary:
            page, inside = divmod(offset + written, PAGE_BYTES)
            change = self._page(page)
            count = min(len(change) - inside, boundary - written)
            change[inside : inside + count] = data[written : written + count]
            written += count
        while written < len(data):
            written += os.pwrite(self._file, data[written:], offset + written)
        self._position += len(data)
        self._end = max(self._end, self._position)
        return len(data)

    def truncate(self, size: int) -> int:
        # Growth only: nothing that is committed may go before the next commit says so.
        self._end = max(size, self._committed)
        return size

    def flush(self) -> None:
        """Nothing: `commit` decides when changes are visible."""

    def _page(self, page: int) -> bytearray:
        if page not in self._pages:
            length = min(PAGE_BYTES, self._committed - page * PAGE_BYTES)
            self._pages[page] = bytearray(os.pread(self._file, length, page * PAGE_BYTES))
        return self._pages[page]


def recover(path: Path) -> None:
    """Finish the commit in which a process was killed, or forget the one that it had only begun to note down."""
    journal = _journal_path(path)
    if not journal.exists():
        return
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):  # its writer ended its commit meanwhile
            content = journal.read_bytes()
            checksum, body = content[: CHECKSUM.size], content[CHECKSUM.size :]
            if checksum == CHECKSUM.pack(zlib.crc32(body)):
                _apply(file, body)
            journal.unlink()
    finally:
        os.close(file)


def forget(path: Path) -> None:
    """Remove what the last commit to a file of this name, which is not there any more, may have left."""
    _journal_path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect when the block has ended: HDF5 crashes where its storage raises."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *given: pressed.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if pressed:
            usual(*pressed[0])


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def _apply(file: int, body: bytes) -> None:
    at = 0
    while at < len(body):
        offset, length = ENTRY.unpack_from(body, at)
        at += ENTRY.size
        os.pwrite(file, body[at : at + length], offset)
        at += length
