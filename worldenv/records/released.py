"""Released checkpoints: what a folder in its authors' layout holds, told before anything large is read.

Nothing of a folder is executed, and nothing is fetched from a network. Weights are safetensors files, of which the
headers say names and shapes. A pickle is read by name only, and of its content tensors only.
"""

import pickle
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.fields import from_document, shown
from worldenv.files import new_folder, read_json
from worldenv.records.checkpoint import CheckpointError, check_file, one_line

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# Library -> its name of a single file of weights, and the entry of config.json that says the type of the model.
WRITERS = {"transformers": (WEIGHTS, "model_type"), "diffusers": ("diffusion_pytorch_model.safetensors", "_class_name")}
SETTINGS = "worldenv.json"  # ours, in the folder of a released model: how it is used, as far as not by default
AGAIN = "download the folder again, whole"
DTYPES = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}  # of weights, by the setting `dtype`
STORED = {"F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # safetensors' names; F32 and all others: 4 bytes
SHOWN = 4  # names in a message
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, to look at any number's bits
Shape = tuple[int, ...]
Config = TypeVar("Config")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and its shape."""

    file: Path
    shape: Shape


@dataclass(frozen=True)
class Release:
    """What `inspect` has found: no tensor has been read yet."""

    folder: Path
    config: dict[str, Any]
    entries: dict[str, Entry]  # by the name of the tensor in the files

    @property
    def shapes(self) -> dict[str, Shape]:
        return {key: entry.shape for key, entry in self.entries.items()}

    def fill(self, module: nn.Module, names: Mapping[str, str], dtype: torch.dtype | None = None) -> int:
        """Read tensors into a module that may be on the device meta, as parameters that need no gradient.

        `names` has the module's name for every name in the files; shapes are checked before, by `check_shapes`. dtype
        is that of floats; None: as stored. Returns a number that these weights are known by. Raises CheckpointError
        for a tensor that is not finite.
        """
        known = 0
        for file in sorted({self.entries[key].file for key in names}):
            with safe_open(file, framework="pt", device="cpu") as opened:
                for key in sorted(key for key in names if self.entries[key].file == file):
                    tensor = opened.get_tensor(key)
                    check_finite(file, key, tensor)
                    known = mixed(known, tensor)
                    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    # A copy: the file may be replaced or cut while the tensor is in use.
                    put(module, names[key], tensor.to(kind, copy=True))
        return known

    def write_weights(self, folder: Path, changed: Mapping[str, Callable[[], Tensor]]) -> None:
        """Write the weights into another folder, file by file, with some tensors replaced; dtypes stay as stored.

        A changed tensor is asked for when its file is written, so that only one file's are in memory. Raises UserError
        for one that the files do not have, or that has another shape.
        """
        if unknown := changed.keys() - self.entries.keys():
            raise UserError(f"{self.folder} has no {_some(unknown)}, so it cannot be written back there")
        for file in sorted({entry.file for entry in self.entries.values()}):
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                metadata = opened.metadata()
            for key in changed.keys() & tensors.keys():
                tensor = changed[key]().detach().to("cpu", tensors[key].dtype).contiguous()
                check_shapes(file, {key: tuple(tensor.shape)}, {key: tuple(tensors[key].shape)}, AGAIN)
                tensors[key] = tensor
            try:
                save_file(tensors, folder / file.name, metadata)
            except SafetensorError as error:
                raise OSError(str(error)) from error  # of the system, which safetensors hides in its own
        if (index := self.folder / INDEX).exists():
            (folder / INDEX).write_bytes(index.read_bytes())


def library(name: str) -> ModuleType:
    """Import a package that released models need. Raises UserError with the extra's name where it is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'released models need {error.name or name}: pip install "worldenv[models]"') from error


def open_tokenizer(path: Path) -> Any:
    """A tokenizers.Tokenizer that neither pads nor cuts off. Raises CheckpointError if the file is damaged."""
    tokenizers = library("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # of the library, which raises this very class
        raise CheckpointError(f"{path} is no tokenizer ({one_line(error)}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def folder_of(path: Path | str) -> Path:
    """The path of a folder that is there. Raises UserError for anything else, also for a name on a hub."""
    if not isinstance(path, str | Path) or not str(path).strip():
        raise UserError(f"{shown(path)} is no path; give the folder of a released model")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "is not there"
        raise UserError(
            f"{folder} {what}; give the folder of a released model, which you have downloaded: nothing is fetched here"
        )
    return folder.resolve()


def inspect(path: Path | str, model_types: Collection[str], writer: str = "transformers") -> Release:
    """Check a folder's configuration, its list of files and the header of each, without reading a tensor.

    writer: the library that wrote it, transformers or diffusers, which name types and files otherwise. Raises UserError
    for a path that is no folder. Raises CheckpointError if the configuration is missing or of another architecture, if
    a file of the weights is missing, cut short or not listed, or if there are pickles only.
    """
    folder = folder_of(path)
    weights, key = WRITERS[writer]
    config = read_config(folder, model_types, key)
    entries: dict[str, Entry] = {}
    listed = _listed(folder, weights)
    for file in sorted(set(listed.values())) if listed else [weights]:
        for key, shape in header(folder / file).items():
            if key in entries or listed.get(key, file) != file:
                raise CheckpointError(f"{folder / file} holds {key} that belongs to another file; {AGAIN}")
            entries[key] = Entry(folder / file, shape)
    if listed and (differing := listed.keys() ^ entries.keys()):
        raise CheckpointError(
            f"{folder / _index(weights)} and the files that it lists differ in {_some(differing)}: they are of "
            f"different checkpoints; {AGAIN}"
        )
    return Release(folder, config, entries)


def read_config(folder: Path, model_types: Collection[str], key: str = "model_type") -> dict[str, Any]:
    """The document config.json; `key` says its type. Raises CheckpointError if it is missing or of another one."""
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} has no {CONFIG}, so it is no whole released model; {AGAIN}")
    config = read_json(path)
    found = config.get(key, config.get("type"))  # the latter as LeRobot calls it
    if found not in model_types:
        raise CheckpointError(
            f"{path} is of the architecture {shown(found)}, not {' or '.join(sorted(model_types))}; give the folder of "
            "such a model, or choose the adapter of this one"
        )
    return config


def _index(weights: str) -> str:
    return f"{weights}.index.json"


def _listed(folder: Path, weights: str) -> dict[str, str]:
    """Name of a tensor -> name of its file, of the index; empty for a single file."""
    index = folder / _index(weights)
    if not index.exists():
        if not (folder / weights).exists():
            raise _no_weights(folder, weights)
        return {}
    listed = read_json(index).get("weight_map")
    names = listed.values() if isinstance(listed, dict) else ()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} has no weight_map of names of files beside it; {AGAIN}")
    if missing := sorted({name for name in names if not (folder / name).is_file()}):
        raise CheckpointError(
            f"{folder} lacks {_some(missing)}: {len(missing)} of the {len(set(names))} files that {index.name} lists; "
            "download them into it"
        )
    if pickles := sorted({name for name in names if not name.endswith(".safetensors")}):
        raise CheckpointError(f"{index} lists {_some(pickles)}; weights should be safetensors files")
    return listed


def _no_weights(folder: Path, weights: str) -> CheckpointError:
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for path in folder.glob("*.pt") if "--" not in path.name
    )
    if pickles:
        return CheckpointError(
            f"{folder} has its weights in {_some(pickles)}: pickles, which may run a program and are not read; take "
            "the release as safetensors, or save the model again with safe_serialization=True"
        )
    return CheckpointError(f"{folder} has neither {weights} nor {_index(weights)}; {AGAIN}")


def header(path: Path) -> dict[str, Shape]:
    """Name and shape of every tensor of a safetensors file, from its first bytes.

    Raises CheckpointError if there is no such file, or if it is cut short or of another kind.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({one_line(error)}); a pointer of Git LFS, or cut short: "
            "download it again"
        ) from error


def check_shapes(where: Path, found: Mapping[str, Shape], wanted: Mapping[str, Shape], remedy: str) -> None:
    """Raise CheckpointError unless there are all tensors that are wanted, no other, and each of its shape."""
    said = []
    if missing := sorted(wanted.keys() - found.keys()):
        said.append(f"lacks {_some(missing)}")
    if unexpected := sorted(found.keys() - wanted.keys()):
        said.append(f"has {_some(unexpected)}, which this model does not know")
    wrong = sorted(key for key in found.keys() & wanted.keys() if tuple(found[key]) != tuple(wanted[key]))
    if wrong:
        shapes = [f"{key} {list(found[key])} where {list(wanted[key])} fits" for key in wrong[:SHOWN]]
        said.append(f"has {', '.join(shapes)}" + _rest(wrong))
    if said:
        raise CheckpointError(f"{where} {'; '.join(said)}. {remedy[:1].upper()}{remedy[1:]}")


def stored_bytes(
    entries: Mapping[str, Entry],
    dtype: str,  # as in settings; stored: that of the largest tensor
) -> int:
    """Bytes of a number of such weights, told without reading a tensor."""
    kind = getattr(torch, dtype, None)
    if kind is None:
        key = max(entries, key=lambda name: torch.Size(entries[name].shape).numel())
        with safe_open(entries[key].file, framework="pt", device="cpu") as file:
            kind = getattr(torch, STORED.get(file.get_slice(key).get_dtype(), "float32"))
    return kind.itemsize


def component(folder: Path, name: str) -> Path | None:
    """The file `name--*checkpoint.pt`, None if there is none. Raises CheckpointError if there are several."""
    found = sorted(path for path in folder.glob(f"{name}--*.pt") if "checkpoint" in path.name)
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} has {_some([path.name for path in found])}: one of them should be there; move the others away"
        )
    return found[0] if found else None


def read_pickle(path: Path, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict that torch.save wrote. They are mapped into memory: only what is used is read.

    within: the name under which a training script may have put it, beside other things. Raises CheckpointError if there
    is anything but tensors in it, which is then not executed, or if it is damaged.
    """
    check_file(path)
    if not is_zipfile(path):
        raise CheckpointError(f"{path} is no complete file of torch.save ({AGAIN})")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which would be executed, so it is not loaded; ask its author for the "
            "state dict alone, or save that yourself where you trust the file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}); {AGAIN}") from error
    tensors = found if isinstance(found, dict) else {}
    tensors = tensors.get(within, tensors) if within is not None else tensors
    tensors = tensors if isinstance(tensors, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()):
        raise CheckpointError(f"{path} is no state dict: names and tensors; {AGAIN}")
    return tensors


def settings_in(folder: Path, kind: type[Config]) -> Config:
    """The configuration in a folder's worldenv.json: what it does not say is as by default.

    Raises UserError for a field that is unknown or holds what it may not.
    """
    path = folder / SETTINGS
    return from_document(kind, asdict(kind()) | read_json(path), str(path)) if path.exists() else kind()


@contextmanager
def written_like(source: Path, target: Path | str, *other: str) -> Iterator[Path]:
    """Copy a folder, without files that match the patterns `other`; the block writes these into the copy.

    After the block the copy appears as `target`, whole or not at all. Raises UserError if there is something already.
    """
    with new_folder(target) as made:
        shutil.copytree(source, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*other))
        try:
            yield made
        except SafetensorError as error:  # the system's, which safetensors hides in its own
            raise OSError(str(error)) from error


def check_finite(file: Path, key: str, tensor: Tensor) -> None:
    """Raise CheckpointError unless all numbers of a tensor are finite."""
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise CheckpointError(f"{file}: {key} holds numbers that are not finite; take another checkpoint")


def mixed(known: int, tensor: Tensor) -> int:
    """A number that tensors are known by, with one more: it depends on their bits and order, and not on the machine."""
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(INTEGERS[tensor.element_size()])
    return (known * 1_000_003 + int(bits.sum(dtype=torch.int64))) % 2**62


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer, by its name with dots, to a tensor."""
    owner, _, leaf = name.rpartition(".")
    part = module.get_submodule(owner)
    if leaf in part._buffers:
        part._buffers[leaf] = tensor
    else:
        setattr(part, leaf, nn.Parameter(tensor, requires_grad=False))


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(name[:120] for name in names[:SHOWN]) + _rest(names)


def _rest(names: Collection[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
