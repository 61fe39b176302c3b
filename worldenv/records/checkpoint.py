"""Weights and resumable states on disk: one safetensors file each, no pickle, written completely or not at all."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.files import replace_whole
from worldenv.records.checksum import CHECKSUM, checksum

WEIGHTS_KEY = "worldenv"
STATE_KEY = "worldenv_state"
OTHER_MODULE = "Build the module with the configuration saved beside the file, or give the file of this module"
ARRAY_TYPE = re.compile(r"[<>|][biufc]\d{1,2}")


class CheckpointError(UserError):
    """A checkpoint file that is missing, damaged or does not fit; the message says what to do."""


def save_weights(path: str | Path, module: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the weights of a module (or its state dict) with JSON metadata, atomically.

    Tensors are written from the CPU; tied ones are written twice. Raises TypeError for metadata that JSON cannot hold.
    """
    state_dict = module.state_dict() if isinstance(module, nn.Module) else module
    _write_tensors(Path(path), dict(state_dict), WEIGHTS_KEY, dict(metadata))


def load_weights(path: str | Path, module: nn.Module | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote, and copy it into `module` where one is given.

    Returns (state dict on the CPU, metadata). Raises CheckpointError if the file is missing, damaged or not of
    `save_weights`, or does not fit the module, as `check_fit` says; the module is then unchanged.
    """
    path = Path(path)
    state_dict, metadata = _read_tensors(path, WEIGHTS_KEY, "save_weights")
    if module is not None:
        check_fit(path, state_dict, module)
        module.load_state_dict(state_dict)
    return state_dict, metadata


def inspect_weights(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes and metadata of what `save_weights` wrote, by the head of the file: no tensor is read.

    Raises CheckpointError as `load_weights` does, but not for damaged tensors.
    """
    path = Path(path)
    shapes, text = _read(path, WEIGHTS_KEY, "save_weights", lambda file, name: tuple(file.get_slice(name).get_shape()))
    return shapes, _document(path, text)


def save_state(path: str | Path, **parts: Any) -> None:
    """Write everything that a run needs to continue, atomically: `save_state(path, model=..., optimizer=..., step=3)`.

    A part is a tensor, numpy array, int, float, str, bool, None, or a dict (keys str or int), list or tuple of such
    things: state dicts of modules and optimizers, and the random states of torch, numpy and Python. Raises TypeError,
    naming the entry, for anything else.
    """
    tensors: dict[str, Tensor] = {}
    structure = {name: _encode(part, name, tensors) for name, part in parts.items()}
    _write_tensors(Path(path), tensors, STATE_KEY, structure)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote: {part: value}, tensors on the CPU.

    Raises CheckpointError if the file is missing, damaged or not of `save_state`.
    """
    path = Path(path)
    tensors, structure = _read_tensors(path, STATE_KEY, "save_state")
    try:
        return {name: _decode(node, tensors) for name, node in structure.items()}
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a state that save_state wrote ({one_line(error)})") from error


def _write_tensors(path: Path, tensors: dict[str, Tensor], key: str, document: dict[str, Any]) -> None:
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: the folder {path.parent} does not exist; make it first")
    # safetensors refuses tensors that share storage, such as tied weights and views of one buffer.
    storages: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    text = json.dumps(document)
    # One entry of metadata only: safetensors writes several in a random order.
    metadata = {key: json.dumps(json.loads(text) | {CHECKSUM: checksum(json.loads(text), separate)})}

    def write(made: Path) -> None:
        try:
            save_file(separate, made, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error  # of the system, which safetensors hides in its own

    replace_whole(path, write)


def _read_tensors(path: Path, key: str, writer: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # Copies: the file may be replaced or cut while the tensors are in use.
    tensors, text = _read(path, key, writer, lambda file, name: file.get_tensor(name).clone())
    document, has_checksum = _checked_document(path, text, tensors)
    if key == STATE_KEY and not has_checksum:
        raise CheckpointError(f"{path}: has no checksum, so an older version wrote it; begin again with another --run")
    return tensors, document


def _read(path: Path, key: str, writer: str, take: Callable[[Any, str], Any]) -> tuple[dict[str, Any], str]:
    """What `take` makes of each tensor, and the text under `key`."""
    check_file(path)
    while (found := _read_once(path, take)) is None:
        pass
    parts, metadata = found
    if key not in metadata:
        found = _shortened(sorted(metadata)) or "nothing"
        raise CheckpointError(f"{path}: not written by {writer} (its metadata holds {found}); give another file")
    return parts, metadata[key]


def _read_once(path: Path, take: Callable[[Any, str], Any]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Parts and metadata; None if another file took the name meanwhile: safetensors opens it for each of the two."""
    before = _version(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            parts = {name: take(file, name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if _version(path) != before:
            return None
        if isinstance(error, OSError):
            raise CheckpointError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({one_line(error)}); it was cut short or is of another kind: "
            "delete it and use the checkpoint before it, or make it again"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory ({path.stat().st_size:,} bytes)") from error
    return (parts, metadata) if _version(path) == before else None


def _version(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_file(path: Path) -> None:
    """Raise CheckpointError unless there is a file of this name, or a link to one: no folder, and no pipe, which would
    block."""
    try:
        if path.is_file():
            path.open("rb").close()  # safetensors says of a file that may not be read that there is none
            return
        found = f"{path}: not a file, but a folder, a pipe or a device" if path.exists() else ""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    raise CheckpointError(f"{found or f'{path}: there is no such file'}; check the path")


def _document(path: Path, text: str) -> dict[str, Any]:
    """The document in a file's metadata."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is not JSON ({one_line(error)}); make it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: its metadata is no JSON object; make it again")
    return document


def _checked_document(path: Path, text: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], bool]:
    """The same, and whether it has a checksum; a file of an older version has none."""
    document = _document(path, text)
    expected = document.pop(CHECKSUM, None)
    if expected is not None and expected != checksum(document, tensors):
        raise CheckpointError(
            f"{path}: damaged: its content does not have the checksum that it was written with; copy it again from "
            "where it came from, or make it again"
        )
    return document, expected is not None


def one_line(error: Exception) -> str:
    """The beginning of the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_fit(path: Path, state_dict: Mapping[str, Tensor], module: nn.Module, remedy: str = OTHER_MODULE) -> None:
    """Raise CheckpointError if the weights read from `path` differ from a module's in names, shapes or kinds of
    numbers, or if a parameter is not finite. The module may be on the device meta."""
    expected = module.state_dict()
    differences = []
    if missing := sorted(expected.keys() - state_dict.keys()):
        differences.append("missing in the file: " + _shortened(missing))
    if unexpected := sorted(state_dict.keys() - expected.keys()):
        differences.append("in the file but not in the module: " + _shortened(unexpected))
    both = [(name, state_dict[name], expected[name]) for name in expected if name in state_dict]
    if shapes := [
        f"{name} is {list(mine.shape)} in the file and {list(wanted.shape)} in the module"
        for name, mine, wanted in both
        if mine.shape != wanted.shape
    ]:
        differences.append("shapes: " + _shortened(shapes))
    if dtypes := [
        f"{name} is {mine.dtype} in the file and {wanted.dtype} in the module"
        for name, mine, wanted in both
        if mine.dtype != wanted.dtype and not (mine.is_floating_point() and wanted.is_floating_point())
    ]:
        differences.append("kinds of numbers: " + _shortened(dtypes))
    if differences:
        raise CheckpointError(f"{path}: does not fit {type(module).__name__}; {'; '.join(differences)}. {remedy}")
    learnt = {name for name, _ in module.named_parameters()}  # a buffer, such as a mask, may be infinite
    if wrong := [name for name, mine, to in both if name in learnt and not mine.to(to.dtype).isfinite().all()]:
        raise CheckpointError(
            f"{path}: holds numbers that are not finite, in {_shortened(wrong)}: the training that wrote it went "
            "wrong; give an earlier file, or train again"
        )


def _shortened(entries: list[str]) -> str:
    rest = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    return ", ".join(repr(entry)[1:-1][:200] for entry in entries[:5]) + rest


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # As bytes, because torch lacks some of numpy's types.
        tensors[name] = torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy())
        return {"array": name, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(entry, f"{name}.{i}", tensors) for i, entry in enumerate(value)]}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [_checked_key(key, name), _encode(entry, f"{name}.{key!r}", tensors)] for key, entry in value.items()
            ]
        }
    raise TypeError(
        f"{name} is a {type(value).__name__}: a state holds tensors, numpy arrays, int, float, str, bool, "
        "None, and dicts, lists and tuples of these; convert it"
    )


def _checked_key(key: Any, name: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"{name} has the key {key!r}: keys should be str or int")
    return key


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    """What `_encode` was given. Takes its tensors out, so that a small file cannot ask for the same one many times."""
    if not isinstance(node, dict):
        return node
    (kind, content), *details = node.items()
    if kind == "tensor":
        return tensors.pop(content)
    if kind == "array":
        described = dict(details)
        if not ARRAY_TYPE.fullmatch(described["dtype"]):
            raise ValueError(f"dtype {described['dtype'][:80]!r}")
        flat = np.frombuffer(tensors.pop(content).numpy().tobytes(), described["dtype"])
        return flat.reshape(described["shape"]).copy()
    if kind == "dict":
        return {key: _decode(entry, tensors) for key, entry in content}
    return {"list": list, "tuple": tuple}[kind](_decode(entry, tensors) for entry in content)
