"""Files that no kill, full disk or second process leaves torn or mixed, and files that are read with suspicion."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from worldenv.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
JSON_BYTES = 1 << 26  # more than any JSON document of this package
JSON_LEVELS = 50


def lock(path: Path, guarded: Path | None = None) -> tuple[int, bool] | None:
    """Lock a file, which is made if need be, until the descriptor is closed or the process dies.

    Returns the descriptor and whether it is certain that nobody else has the lock; None if somebody has. On a file
    system without locks nothing is certain: a warning says so of `guarded`, by default the folder of the file. Raises
    OSError if the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
        warnings.warn(
            f"{guarded or path.parent}: the file system has no locks ({error.strerror}): see to it that nobody else "
            "writes there",
            stacklevel=3,
        )
        return descriptor, False
    return descriptor, True


def sync(path: Path) -> None:
    """Return once a file, or the names in a folder, are safe on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no fsync of folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, with a name that nobody else uses; removed at the end of the block."""
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    folder.mkdir()  # fails if there is anything of that name, a link too
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A folder for the block to fill; after the block it appears as `path`, whole or not at all.

    Raises UserError if there is something already, or if the system does not let it be written.
    """
    path = Path(path).expanduser()
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; give a folder that is not")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as made:
            yield made
            os.replace(made, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_be_written(path, error) from error


def remove_temporary(folder: Path) -> None:
    """Remove what killed writers left in a folder. Only its owner may: a writer at work would lose its file."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file at the path that it is given, and give that file the name `path`.

    Whatever happens, `path` is the old file or the new one. Who may read it is left to the umask. Raises UserError
    naming `path` where `write` or the system raises OSError.
    """
    try:
        with temporary_folder(path) as folder:
            made = folder / path.name
            write(made)
            made.chmod(folder.stat().st_mode & 0o666)  # safetensors writes files that only their owner may read
            sync(made)
            os.replace(made, path)
        sync(path.parent)  # the new name itself is only safe once its folder is on disk
    except OSError as error:
        raise cannot_be_written(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with `replace_whole`. What UTF-8 cannot hold (half a surrogate pair) is escaped."""
    replace_whole(path, lambda made: made.write_bytes(text.encode("utf-8", "backslashreplace")))


def cannot_be_written(path: Path, error: OSError) -> UserError:
    """The error of the user for one of the system."""
    return UserError(
        f"{path} cannot be written ({reason(error)}): free some space or mend what is wrong there, then try again "
        "(--resume continues an interrupted run)"
    )


def reason(error: OSError) -> str:
    """What the system says, without the path."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises UserError if there is none, or it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a folder, a pipe or a device; a file was expected: put the file there")
        if status.st_size > limit:
            raise UserError(f"{path} has {status.st_size:,} bytes; at most {limit:,} were expected: a wrong file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): mend what is wrong there") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError naming the file if it is missing, damaged or something else."""
    try:
        document = parse_json(read_bytes(path, JSON_BYTES))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON ({error}): it is damaged; restore it from a copy") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a JSON {type(document).__name__}, no object: restore it from a copy")
    return document


def parse_json(text: bytes) -> Any:
    """A JSON value in UTF-8. Raises ValueError for anything else: NaN and a name twice, both of which Python reads,
    and nesting without end."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError(f"nested more than {JSON_LEVELS} levels deep") from None
    if _is_deep(value, JSON_LEVELS):
        raise ValueError(f"nested more than {JSON_LEVELS} levels deep")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} is there twice")
        found[name] = value
    return found


def _is_deep(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deep(part, levels - 1) for part in parts)
