"""What the fields of a configuration may hold: types and ranges, checked wherever a configuration is made or read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from worldenv.errors import UserError

MOST = 1_000_000  # more episodes, actions or iterations than memory and time ever hold
LARGEST = 65_536  # of any size of a network
LONGEST_SHOWN = 60  # characters of a value in a message
# Metadata of a field that a later version added. Documents of older versions lack it; its default is what they did.
ADDED = {"added": True}
Config = TypeVar("Config")


class FieldError(UserError):
    """A field of a configuration has a wrong value. The message begins with the name of the field."""


@dataclass(frozen=True)
class Within:
    """The range of a number, with both ends; `open_low` and `open_high` leave an end out."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.open_low else f"from {self.low:,}"
        return f"{low} and below {self.high:,}" if self.open_high else f"{low} to {self.high:,}"


COUNT = Within(1, MOST)
SHARE = Within(0.0, 1.0)


def check_fields(config: Any, **ranges: Within) -> None:
    """Check the type of every field of a frozen dataclass, and the range of every number.

    `ranges` has the range of each field that is an int, a float or a tuple of them. Numbers of NumPy become those of
    Python, and `~` in a path becomes the home folder. Raises FieldError for a value of another type, for one that is
    not finite or out of range, and for a path that no file can have.
    """
    for name, kind in _kinds(type(config)).items():
        object.__setattr__(config, name, _checked(name, getattr(config, name), kind, ranges.get(name)))


@cache
def _kinds(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _checked(name: str, value: Any, kind: Any, within: Within | None) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # with None; the package has no other unions
        return None if value is None else _checked(name, value, inner[0], within)
    if origin is Literal:
        if value not in inner:
            raise FieldError(f"{name} is {shown(value)}; it should be {' or '.join(map(str, inner))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise FieldError(f"{name} is {shown(value)}; it should be a list of numbers")
        if inner[-1] is not ... and len(value) != len(inner):
            raise FieldError(f"{name} is {shown(value)}; it should have {len(inner)} numbers")
        return tuple(_checked(name, item, inner[0], within) for item in value)
    if kind in (int, float):
        return _number(name, value, kind, within)
    if kind is Path:
        return _path(name, value)
    if not isinstance(value, kind):
        raise FieldError(f"{name} is {shown(value)}; it should be of type {kind.__name__}")
    return value


def _number(name: str, value: Any, kind: type, within: Within | None) -> Any:
    if within is None:
        raise TypeError(f"the field {name} has no range")
    is_kind = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if not is_kind or value not in within:  # NaN is in no range
        raise FieldError(
            f"{name} is {shown(value)}; it should be a {'whole number' if kind is int else 'number'} {within}"
        )
    return kind(value)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise FieldError(f"{name} is {shown(value)}; it should be a path")
    try:
        path = Path(value).expanduser()
        str(path).encode()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # said by what reads or writes it
        pass
    except RuntimeError as error:  # of expanduser
        raise FieldError(f"{name} is {shown(value)}: {error}; write the path without ~") from None
    except UnicodeEncodeError:
        raise FieldError(f"{name} is {shown(value)}, which is not UTF-8; rename it, or use a UTF-8 locale") from None
    except (OSError, ValueError) as error:  # too long, a loop of links, a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise FieldError(f"{name} is {shown(value)}, which is not a valid path: {reason}") from None
    return path


def shown(value: Any) -> str:
    """A value as messages show it: in one line, cut if it is long."""
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a number of {value.bit_length():,} bits"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def from_document(kind: type[Config], document: Any, where: str) -> Config:
    """The configuration whose fields `asdict` and JSON have written; `where` names it in messages.

    A field that is marked as ADDED may be missing: it takes its default. Raises UserError for other fields that are
    missing, and for fields that are unknown or hold what they may not.
    """
    if not isinstance(document, Mapping):
        raise UserError(f"{where} is {shown(document)}, not the fields of {kind.__name__}: it is damaged")
    names = {field.name for field in fields(kind)}
    document = with_added(kind, document)
    wrong = {"lacks": names - document.keys(), "does not know": document.keys() - names}
    if any(wrong.values()):
        said = (f"{verb} {shown(', '.join(sorted(map(str, found))))}" for verb, found in wrong.items() if found)
        raise UserError(f"{where} was made by another version of worldenv, or is damaged: {' and '.join(said)}")
    values = {}
    for name, inner in _kinds(kind).items():
        nested = is_dataclass(inner) and isinstance(inner, type)
        values[name] = from_document(inner, document[name], f"{where}, {name}") if nested else document[name]
    try:
        return kind(**values)
    except FieldError as error:
        raise UserError(f"{where}: {error}; it was made by another version of worldenv, or is damaged") from error


def with_added(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document, with the defaults of the fields that were added after the version that saved it."""
    return {field.name: field.default for field in fields(kind) if field.metadata == ADDED} | document


def differences(old: Any, new: Any, prefix: str = "--") -> list[tuple[str, Any, Any]]:
    """Option, old and new value, for every field in which two configurations of one type differ."""
    found = []
    for field in fields(old):
        was, now, option = getattr(old, field.name), getattr(new, field.name), prefix + field.name.replace("_", "-")
        if is_dataclass(was):
            found += differences(was, now, f"{option}.")
        elif was != now:
            found.append((option, was, now))
    return found
