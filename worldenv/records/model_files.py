"""Models on disk: one safetensors file each, with its kind and the configuration that rebuilds it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights

RANGES = "ranges.json"  # beside the models: least and greatest input of their layers, for 8 bits
Network = TypeVar("Network", bound=nn.Module)


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

    Raises CheckpointError if the file is missing, damaged, or holds a model of another kind.
    """
    weights, metadata = load_weights(path)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} holds a {metadata.get('kind', 'model of unknown kind')}; a {kind} was expected")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["config"].items()}
    model = _in_float32(lambda: network(config(**values), **options))
    load_weights(path, model)
    return model.float().to(memory_format=torch.channels_last).eval(), metadata


def _in_float32(build: Callable[[], Network]) -> Network:
    """build() while float32 is torch's default: with another one of the caller's, weights would be rounded as they are
    copied."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)
