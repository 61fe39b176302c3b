"""A copy of metrics for TensorBoard."""

import contextlib
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from worldenv.records.metrics import Line


class Events:
    """One event file in a folder, made anew: an event file cannot be cut, and would show resumed steps twice.

    Written here and not by torch's SummaryWriter, which has a thread of its own: what fails there ends in a traceback
    on stderr. Every method raises OSError if the disk refuses the data.
    """

    def __init__(self, folder: Path):
        from tensorboard.compat.proto.event_pb2 import Event  # take seconds to import, so only commands that log do
        from tensorboard.summary.writer.record_writer import RecordWriter

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()  # fails where the name is a link to somewhere else
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._writer, self._event = RecordWriter(self._file), Event
        self._write(file_version="brain.Event:2")

    def add(self, line: Line) -> None:
        """One point for every number of the line, tagged `<stage>/<name>`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=f"{line['stage']}/{name}", simple_value=value)
            for name, value in line.items()
            if name not in ("stage", "step") and isinstance(value, int | float)
        ]
        if points:
            self._write(step=line["step"], summary=Summary(value=points))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Close the file; what a full disk no longer takes is lost."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
