"""The single file operations of a process, at which something may be done to it."""

import builtins
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "truncate", "chmod")


def count_steps(root: Path, counter: Path) -> None:
    """Write the number of this process's file operations so far to `counter`, from now on."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        counter.write_text(str(count))

    before_each_step(root, step)


def before_step(root: Path, number: int, act: Callable[[], Any]) -> None:
    """Call `act` right before the file operation of that number, from 0."""
    count = -1

    def step() -> None:
        nonlocal count
        count += 1
        if count == number:
            act()

    before_each_step(root, step)


def before_each_step(root: Path, act: Callable[[], None]) -> None:
    """Call `act` before every operation of this process on files below `root`, or on descriptors, from now on."""
    inside = False

    def guarded(function: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal inside
            first = given[0] if given else None
            counts = isinstance(first, int) or "dir_fd" in named or str(first).startswith(str(root))
            if counts and not inside:
                inside = True
                act()
                inside = False
            return function(*given, **named)

        return call

    for name in OPERATIONS:
        setattr(os, name, guarded(getattr(os, name)))
    fcntl.flock = guarded(fcntl.flock)
    builtins.open = io.open = guarded(io.open)
