"""The four models of a run on disk: one safetensors file each, with the configuration that rebuilds it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldenv.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.policy.network import Policy, PolicyConfig
from worldenv.reflector.network import Reflector, ReflectorConfig
from worldenv.simulator.network import Simulator, SimulatorConfig

KINDS = {
    "policy": (Policy, PolicyConfig),
    "simulator": (Simulator, SimulatorConfig),
    "reflector": (Reflector, ReflectorConfig),
}


def shipped() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(files("worldenv") / "assets" / "tabletop"))


def save_model(
    path: Path,
    model: Policy | Simulator | Reflector,
    made: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    **extra: Any,
) -> None:
    """Write a model with its configuration; `made` tells how it came to be (seed, steps, metrics)."""
    kind = type(model).__name__.lower()
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_weights(path, weights, {"kind": kind, "config": asdict(model.config), "made": dict(made), **extra})


def load_model(path: Path, kind: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Rebuild a model from its file, in float32; returns it with the file's metadata.

    Raises CheckpointError if the file is missing, damaged, or holds a model of another kind.
    """
    weights, metadata = load_weights(path)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} holds a {metadata.get('kind', 'model of unknown kind')}; a {kind} was expected")
    network, config = KINDS[kind]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["config"].items()}
    model: nn.Module = network(config(**values), **options)
    load_weights(path, model)
    return model.float().to(memory_format=torch.channels_last).eval(), metadata


@dataclass
class Models:
    """What a rollout needs."""

    policy: Policy
    simulator: Simulator
    levels: tuple[float, ...]  # noise levels of the simulator's sampler
    reflector: Reflector

    @classmethod
    def load(cls, folder: Path, zero_shot: bool = False) -> "Models":
        """policy.safetensors, simulator.safetensors and reflector.safetensors of a folder."""
        policy, _ = load_model(folder / "policy.safetensors", "policy")
        simulator, about = load_model(folder / "simulator.safetensors", "simulator")
        reflector, _ = load_model(folder / "reflector.safetensors", "reflector", zero_shot=zero_shot)
        return cls(policy, simulator, tuple(about["levels"]), reflector)
