"""Errors of the user, reported in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the user: the command line prints it as one line, without a traceback, and exits with code 2."""


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
