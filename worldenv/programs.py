"""What a run folder names that would be executed: modules with parts of the user's own, and TorchScript files.

A run folder may come from a stranger. What it names is executed only where the user could have meant it: never from
within the run folder itself, nor from a file that another user may write, nor a module of Python's own library, whose
functions build no part but delete folders and start programs.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from worldenv.errors import UserError


def check_file(run: Path, file: Path, is_trusted: bool = False) -> None:
    """Raise UserError if the file lies in the run folder, or if its owner is neither this user nor root.

    `is_trusted`: the user has allowed this file in another way (PYTHONPATH), so its owner is not checked.
    """
    real = file.resolve()
    if real.is_relative_to(run.resolve()):
        raise UserError(f"{file} is a program within the run {run}, which names it; if you trust it, put it elsewhere")
    if not is_trusted and (owner := real.stat().st_uid) not in (0, os.geteuid()):
        raise UserError(
            f"{file} is a program of another user (id {owner}), and the run {run} names it; if you trust it, put its "
            "folder on PYTHONPATH, or name it yourself"
        )


def import_checked(
    run: Path,
    module: str,
    file: Path,  # from which the run took it, resolved
    is_trusted: bool,  # whether it would be found there without the run's saying so
) -> Path | None:
    """Import the module if it is found in that file and may be executed; returns where it is found (None: nowhere).

    Raises UserError as `check_file` does, before anything is executed.
    """
    if module in sys.modules:
        there = getattr(sys.modules[module], "__file__", None)
        return None if there is None else Path(there).resolve()
    for name in _with_packages(module):
        try:
            spec = find_spec(name)  # imports what comes before: checked by then
        except (ImportError, ValueError, AttributeError):  # no package, or an empty name
            return None
        found = None if spec is None else spec.origin and Path(spec.origin).resolve()
        if found is not None and found.is_file():
            check_file(run, found, is_trusted)
        if spec is None or (name == module and found != file):
            return found
        import_module(name)
    return file


def check_name(run: Path, module: str) -> None:
    """Raise UserError for a module that comes with Python."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"the run {run} names {module}, a module of Python itself, which has no parts: do not trust it")


def _with_packages(module: str) -> list[str]:
    """a, a.b and a.b.c of a.b.c"""
    names = module.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]
