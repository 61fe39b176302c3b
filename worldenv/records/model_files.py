"""Models on disk: one safetensors file each, with its kind and the configuration that rebuilds it."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from worldenv.errors import nearest
from worldenv.files import write_text
from worldenv.records.checkpoint import (
    CheckpointError,
    check_file,
    check_fit,
    inspect_weights,
    load_weights,
    one_line,
    save_weights,
)
from worldenv.records.checksum import CHECKSUM, checksum

RANGES = "ranges.json"  # beside the models: least and greatest input of their layers, for 8 bits
ROLES = ("policy", "world", "reflector")  # of the networks that have ranges
PLAUSIBLE = 1024  # a size in a configuration may be up to this, or up to the greatest dimension of a tensor
LARGEST = 1e30  # |input| of a layer, so that the steps between its levels are float32 numbers
Network = TypeVar("Network", bound=nn.Module)
LayerRanges = dict[str, tuple[float, float] | None]  # layer -> least and greatest input; None: the input is pixels


def shipped() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(files("worldenv") / "assets" / "tabletop"))


def save_model(
    path: Path,
    model: nn.Module,
    kind: str,  # what `load_model` will be asked for
    made: Mapping[str, Any],  # how the model came to be: seed, steps, metrics
    dtype: torch.dtype = torch.float16,
    **extra: Any,
) -> None:
    """Write a model with its configuration, the dataclass `model.config`."""
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_weights(path, weights, {"kind": kind, "config": asdict(model.config), "made": dict(made), **extra})


def load_model(
    path: Path, kind: str, network: type[Network], config: type, **options: Any
) -> tuple[Network, dict[str, Any]]:
    """Rebuild network(config(...)) from its file, in float32; returns it with the file's metadata.

    Raises CheckpointError if the file is missing, damaged, holds a model of another kind, or a configuration that its
    weights do not fit; before memory is taken for the model.
    """
    weights, metadata = load_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with _valid(path, kind), _Budget(sum(tensor.numel() for tensor in weights.values())):
        made = _configuration_of(path, kind, config, shapes, metadata)
        model = _in_float32(lambda: network(made, **options))
    check_fit(path, weights, model, "It may be of another version of worldenv: use that one, or make the model again")
    model.load_state_dict(weights)
    return model.float().to(memory_format=torch.channels_last).eval(), metadata


def inspect_model(path: Path, kind: str, config: type) -> tuple[Any, dict[str, Any]]:
    """Configuration and metadata of a model's file. No weight is read; raises CheckpointError as `load_model` does."""
    shapes, metadata = inspect_weights(path)
    with _valid(path, kind):
        return _configuration_of(path, kind, config, shapes, metadata), metadata


@contextmanager
def _valid(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{path}: its configuration is not valid for a {kind}: {one_line(error)}") from error


class _Budget(TorchFunctionMode):
    """While a model is built: raises ValueError before it takes more memory than weights of a file need."""

    factories = (torch.empty, torch.zeros, torch.ones, torch.randn)

    def __init__(self, numbers: int):
        super().__init__()
        self.left = 2 * numbers + PLAUSIBLE**2  # the file may lack some, and some are made twice

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in self.factories:
            self.left -= math.prod(args[0] if isinstance(args[0], tuple | list) else args)
        if self.left < 0:
            raise ValueError("it has many more weights than the file")
        return function(*args, **(kwargs or {}))


def _in_float32(build: Callable[[], Network]) -> Network:
    """build() while float32 is torch's default: with another one of the caller's, weights would be rounded as they are
    copied."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


def _configuration_of(
    path: Path, kind: str, config: type, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]
) -> Any:
    if metadata.get("kind") != kind:
        found = metadata.get("kind", "model of unknown kind")
        raise CheckpointError(f"{path} holds a {str(found)[:100]}; a {kind} was expected")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    return _configuration(config, metadata.get("config"), max(PLAUSIBLE, largest))


def _configuration(config: type, values: Any, largest: int) -> Any:
    """The dataclass `config` with values from a file; raises ValueError for a value of another type than the default's.

    What an older file lacks keeps its default.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it has no configuration, but {str(values)[:100]!r}")
    defaults = {field.name: field.default for field in fields(config)}
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(f"unknown field {name[:100]!r}{nearest(name, defaults)}")
        default, numbers = defaults[name], value if isinstance(value, list) else [value]
        one = default[0] if isinstance(default, tuple) else default
        if isinstance(default, tuple) != isinstance(value, list) or not all(_is_like(x, one) for x in numbers):
            raise ValueError(f"{name} is {str(value)[:100]!r}; it should be like {default!r}")
        if any(isinstance(number, int | float) and abs(number) > largest for number in numbers):
            raise ValueError(f"{name} is {str(value)[:100]}; no size of its weights is greater than {largest}")
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)


def save_ranges(path: Path, ranges: Mapping[str, LayerRanges], networks: Mapping[str, nn.Module]) -> None:
    """Write the ranges of networks, by role, with a checksum of each that ties them to the network's weights."""
    sums = {role: checksum(found, networks[role].state_dict()) for role, found in ranges.items()}
    write_text(path, json.dumps({**ranges, CHECKSUM: sums}, indent=1) + "\n")


def load_ranges(
    path: Path,
    networks: Mapping[str, nn.Module],  # by role; those of the package's own classes
) -> dict[str, LayerRanges]:
    """Read the ranges of these networks.

    Raises CheckpointError if the file is damaged, or if it was measured with other weights. A file of an older version
    has no checksum.
    """
    check_file(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}; {_REMEDY}") from error
    if not isinstance(document, dict) or (unknown := document.keys() - {*ROLES, CHECKSUM}):
        found = f"has {sorted(unknown)[0][:100]!r}" if isinstance(document, dict) else "is no JSON object"
        raise CheckpointError(f"{path} {found}; it should have {', '.join(ROLES)}; {_REMEDY}")
    sums = document.get(CHECKSUM)
    for role, network in networks.items():
        _check_layers(path, role, document.get(role))
        if CHECKSUM in document and not _belongs(sums, role, document[role], network):
            raise CheckpointError(f"{path} is damaged, or was measured with other weights of the {role}; {_REMEDY}")
    return {role: {name: x and (x[0], x[1]) for name, x in document[role].items()} for role in networks}


_REMEDY = "make it again (worldenv-train --from-scratch does), or delete it: then imagination is in float32"


def _belongs(sums: Any, role: str, layers: LayerRanges, network: nn.Module) -> bool:
    return isinstance(sums, dict) and sums.get(role) == checksum(layers, network.state_dict())


def _check_layers(path: Path, role: str, layers: Any) -> None:
    """Raise CheckpointError unless `layers` has for every layer null, or a low number and one that is not lower."""
    if not isinstance(layers, dict):
        raise CheckpointError(f"{path} has no ranges of the {role}; {_REMEDY}")
    for name, ends in layers.items():
        numbers = ends if isinstance(ends, list) and len(ends) == 2 else [None, None]
        plausible = all(type(x) in (int, float) and -LARGEST <= x <= LARGEST for x in numbers)
        if ends is not None and not (plausible and numbers[0] <= numbers[1]):
            raise CheckpointError(
                f"{path}: the range of {name[:100]!r} is {str(ends)[:100]}; it should be null or "
                f"[least, greatest]; {_REMEDY}"
            )
