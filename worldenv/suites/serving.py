"""A process that answers requests through a pipe: the other end of an `Actor`. It imports no torch."""

import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from worldenv.errors import UserError


def serve(connection: Connection, simulator: Any) -> None:
    """Answer requests until the other end is closed: ("done", value), ("refused", why) or ("failed", traceback).

    `load` is not answered if it succeeds: what can be read from a connection is the answer to the request after it.
    """
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "done", getattr(simulator, name)(*arguments)
        except UserError as error:
            answer = "refused", str(error)
        except Exception:
            answer = "failed", traceback.format_exc()
        if name != "load" or answer[0] != "done":
            connection.send(answer)


def run(simulator: Any) -> None:
    """Serve the connection whose descriptor is the first argument, for the process whose id is the second."""
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    try:
        serve(connection, simulator)
    finally:
        sys.stderr.flush()
        os._exit(0)  # OpenGL contexts print errors when the interpreter takes them apart


def _end_without(parent: int) -> None:
    """End this process when its parent has been killed, whatever it is busy with."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
