"""A command, called in this process with words of a command line."""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from area_commands import refused

# Where something is written in earnest: no place outside of the case's own folder.
TARGETS = ["new", "deep/er/x", "file", "file/x", "empty", "dangling", "loop", "link", "link/x", "é", "-x", "*", "$HOME"]
TARGETS += ["a\0b", "x" * 300, "", " ", "\udcff", "a\nb", "/dev/null", "/dev/full/x", "/proc/self/mem"]


def called(command: Callable[[Sequence[str]], None], program: str, words: list[str]) -> dict[str, Any]:
    """The document at the end of stdout. Raises UserError if the command was refused in one line, the last of stderr,
    and AssertionError for any other end."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command(words)
        except SystemExit as end:
            code = end.code
    if code == 2 and not out.getvalue():
        box = "For full helptext" in err.getvalue()
        refused(program, err.getvalue() if box else (err.getvalue().splitlines(keepends=True) or [""])[-1])
    if code:
        raise AssertionError(f"exit code {code}: {out.getvalue()[:300]!r} {err.getvalue()[-600:]!r}")
    return json.loads(out.getvalue().splitlines()[-1])
