"""Errors of the user, reported in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the user: the command line prints it as one line, without a traceback, and exits with code 2."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def exit_code(error: BaseException) -> int:
    """With what a command ends that raises this error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 143 if isinstance(error, Terminated) else 130
    return 2 if isinstance(error, UserError | ImportError | Warning) else 1


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    ' — did you mean "x"?' if one of `valid` resembles `name`, else the list of valid names.
    """
    names = sorted(valid)
    by_lowercase = {candidate.lower(): candidate for candidate in names}
    matches = get_close_matches(name.lower(), by_lowercase, n=1)
    if matches:
        return f' — did you mean "{by_lowercase[matches[0]]}"?'
    if not names:
        return " — there are no valid names"
    return " — valid names: " + ", ".join(names)
