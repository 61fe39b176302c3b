"""Reads HDF5 files that may be damaged or malicious: every error says in one line what is wrong."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from worldenv.errors import UserError

# What h5py raises on files that are damaged. HDF5 has no error of its own.
DAMAGE = (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, AttributeError)
MAX_COMPRESSION = 1100  # the limit of gzip is 1032
SMALL_BYTES = 2**16  # the limit of attributes; below it an array may claim what it likes


class TrajectoryFormatError(UserError):
    """A trajectory file that cannot be read: names the file, the group in it and what is wrong, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


@contextmanager
def named(path: Path, group: str) -> Iterator[None]:
    """Errors on damaged contents become a TrajectoryFormatError that says where they were met."""
    try:
        yield
    except (TrajectoryFormatError, MemoryError):
        raise
    except DAMAGE as error:
        raise TrajectoryFormatError(f"{path}: {group}: {error}") from error


def member(group: h5py.Group, key: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at `key`, None if there is nothing. Raises ValueError if it lies in another file or behind a link."""
    found = group
    for name in key.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{key} is a link to another place: only what lies in the file itself is read")
        found = found[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise ValueError(f"{key} has its values in another file: only what lies in the file itself is read")
    return found


def array(
    group: h5py.Group,
    key: str,
    expected: str,  # "float [T, 7]": kind, then sizes; a letter other than T stands for any size but 0
    rows: int | None,  # T; None: any
) -> h5py.Dataset:
    """The data set at `key`. Raises ValueError if it is missing, not as expected, or claims more than is there."""
    dataset = member(group, key)
    if dataset is None:
        raise ValueError(f"the dataset {key} is missing")
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        raise ValueError(f"{key} is {_described(dataset)}, it should be {expected}")
    dtype, shape = dataset.dtype, dataset.shape  # h5py asks the file each time
    kind, extent = expected.removesuffix("]").split(" [")
    sizes = extent.split(", ")
    is_kind = {"uint8": dtype == np.uint8, "float": dtype.kind == "f", "number": True}[kind]
    fits = len(shape) == len(sizes) and all(
        found == int(size) if size.isdecimal() else found > 0 for found, size in zip(shape[1:], sizes[1:], strict=True)
    )
    if not is_kind or dtype.kind not in "fiub" or h5py.check_enum_dtype(dtype) or not fits:
        raise ValueError(f"{key} is {dtype} {list(shape)}, it should be {expected}")
    length = int(sizes[0]) if sizes[0].isdecimal() else rows
    if length is not None and shape[0] != length:
        raise ValueError(f"lengths differ: {key} has {shape[0]} rows, it should have {length} (actions: {rows})")
    _check_claim(dataset, key, math.prod(shape) * dtype.itemsize)
    return dataset


def values(group: h5py.Group, key: str, expected: str, rows: int | None) -> np.ndarray:
    """All values of `array`. Raises ValueError if some are not finite."""
    found = array(group, key, expected, rows)[()]
    if found.dtype.kind == "f" and not (finite := np.isfinite(found)).all():
        bad = int(np.argmin(finite.reshape(len(found), -1).all(axis=1)))
        raise ValueError(f"{key} has values that are not finite (first at row {bad})")
    return found


def names(group: h5py.Group, key: str) -> list[str]:
    """The texts in a data set, none if it is missing. Raises ValueError."""
    dataset = member(group, key)
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        return []
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"{key} is {dataset.dtype} {list(dataset.shape)}, it should be text")
    _check_claim(dataset, key, math.prod(dataset.shape) * dataset.dtype.itemsize)
    return [name.decode("utf-8") if isinstance(name, bytes) else name for name in dataset[()].ravel().tolist()]


def keys(group: h5py.Group) -> list[str]:
    """What lies in a group, but for names that are not UTF-8."""
    return [key for key in group if isinstance(key, str)]


def listed(names: Iterable[str]) -> str:
    """Some of the names, for a message."""
    names = sorted(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


def texts(owner: h5py.HLObject, name: str) -> list[str]:
    """An attribute of one or more strings, of variable or fixed length, bytes included. Raises ValueError."""
    _check_attribute(owner, name, h5py.h5t.STRING, "text")
    found = np.asarray(owner.attrs[name], dtype=object).ravel().tolist()
    if not found:
        raise ValueError(f"the attribute {name} is empty")
    return [text.decode("utf-8") if isinstance(text, bytes) else text for text in found]


def text(owner: h5py.HLObject, name: str) -> str:
    """An attribute of one string, or of pieces of one."""
    return "".join(texts(owner, name))


def whole_number(owner: h5py.HLObject, name: str) -> int:
    """An attribute that is one integer. Raises ValueError."""
    _check_attribute(owner, name, h5py.h5t.INTEGER, "an integer")
    found = np.asarray(owner.attrs[name])
    if found.size != 1:
        raise ValueError(f"the attribute {name} has {found.size} values: it should be an integer")
    return int(found.item())


def _check_attribute(owner: h5py.HLObject, name: str, kind: int, expected: str) -> None:
    """Raise ValueError unless it is of this kind. HDF5 crashes in damaged attributes of some other kinds."""
    if name not in owner.attrs:
        raise ValueError(f"the attribute {name} is missing")
    attribute = owner.attrs.get_id(name)
    if attribute.shape is None:
        raise ValueError(f"the attribute {name} is empty")
    if attribute.get_type().get_class() != kind:
        raise ValueError(f"the attribute {name} is of another type: it should be {expected}")
    size = math.prod(attribute.shape) * attribute.dtype.itemsize
    if size > SMALL_BYTES:
        raise ValueError(f"the attribute {name} claims {size} bytes, more than an attribute can have")


def _check_claim(dataset: h5py.Dataset, key: str, claimed: int) -> None:
    if claimed <= SMALL_BYTES:
        return
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if claimed > SMALL_BYTES + MAX_COMPRESSION * stored:
        raise ValueError(f"{key} claims {claimed} bytes of values, but the file holds {stored}: it is incomplete")


def _described(found: h5py.HLObject) -> str:
    if isinstance(found, h5py.Dataset):
        return "empty" if found.shape is None else "a single value"
    return "a group" if isinstance(found, h5py.Group) else "a datatype"
