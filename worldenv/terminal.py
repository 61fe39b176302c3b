"""The standard streams of a command: closed, full or broken ones cost the work nothing."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO


class Patient:
    """A text stream that passes on what can be written and forgets the rest. For progress, which nothing depends on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Closed(io.TextIOBase):
    """Stands for a stdout that the caller has closed: writing fails, as on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "stdout is closed")


@contextmanager
def patient_streams() -> Iterator[None]:
    """Inside, writing to stderr never fails, and stdout can print any character.

    Descriptors that the caller has closed lead to /dev/null: else the next file that is opened would get their number,
    and what a library prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = Closed()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w") as nowhere:
        stderr = sys.stderr or nowhere
        try:
            with redirect_stderr(Patient(stderr)):
                yield
        finally:
            _flush(sys.stdout)
            _flush(stderr)


def print_result(text: str, out: TextIO | None = None) -> str | None:
    """Print to `out`, by default stdout; returns why it could not be printed, or None."""
    out = sys.stdout if out is None else out
    try:
        print(text, file=out)
        out.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def not_printed(problem: str, run: object = None) -> str:
    """The message for a result that could not be printed; `run` is the run folder that has it."""
    return f"the result could not be printed to stdout ({problem})" + (f"; it is in {run}/result.json" if run else "")


def _flush(stream: TextIO) -> None:
    """Write what is left, or drop it: else Python would try again at its end, and complain."""
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        stream.flush()
