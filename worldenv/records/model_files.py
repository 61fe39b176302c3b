"""The models of a run on disk: one safetensors file each, with the configuration that rebuilds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.nn.int8 import Int8, Ranges, check_precision, in_int8, is_fast
from worldenv.policy.small import Policy, PolicyConfig
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.reflector.small import Reflector, ReflectorConfig
from worldenv.worlds.causal.network import Causal, CausalConfig
from worldenv.worlds.composer.network import Simulator, SimulatorConfig

RANGES = "ranges.json"  # beside the models: what `measure_ranges` found
KINDS = {
    "policy": (Policy, PolicyConfig),
    "simulator": (Simulator, SimulatorConfig),
    "reflector": (Reflector, ReflectorConfig),
    "causal": (Causal, CausalConfig),  # a simulator too, trained by `training/train_causal.py`
}


def shipped() -> Path:
    """The folder of the weights that come with the package."""
    return Path(str(files("worldenv") / "assets" / "tabletop"))


def save_model(
    path: Path,
    model: Policy | Simulator | Reflector | Causal,
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
    ranges: dict[str, Ranges] | None = None  # of the inputs of their layers, for 8 bits

    @classmethod
    def load(cls, folder: Path, zero_shot: bool = False) -> "Models":
        """policy, simulator and reflector.safetensors of a folder, and ranges.json if there is one."""
        policy, _ = load_model(folder / "policy.safetensors", "policy")
        simulator, about = load_model(folder / "simulator.safetensors", "simulator")
        reflector, _ = load_model(folder / "reflector.safetensors", "reflector", zero_shot=zero_shot)
        path = folder / RANGES
        ranges = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return cls(policy, simulator, tuple(about["levels"]), reflector, ranges)

    def to(self, device: torch.device | str) -> "Models":
        """These models, moved to a device."""
        for part in self.parts().values():
            part.to(device)
        return self

    def parts(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, "simulator": self.simulator, "reflector": self.reflector}

    def to_imagine(self, precision: str) -> "Models":
        """These models as a rollout runs them: with precision int8 twins that share all parameters, else themselves.

        auto is int8 where the ranges are known and the models are on a CPU that is made for it. Raises UserError if
        int8 is asked for and cannot be had, or the ranges are of other models.
        """
        check_precision(precision)
        possible = self.ranges is not None and is_fast() and self.simulator.plate.device.type == "cpu"
        if precision == "float32" or (precision == "auto" and not possible):
            return self
        if self.ranges is None:
            raise UserError(f"the models have no {RANGES}, so --precision int8 cannot be had; take auto")
        if not possible:
            raise UserError(f"the models are on {self.simulator.plate.device}; --precision int8 is for the CPU")
        return replace(self, **{name: self._in_int8(name) for name in self.parts()})

    def _in_int8(self, name: str) -> nn.Module:
        ranges = self.ranges.get(name, {"": None})
        small = in_int8(self.parts()[name], ranges)
        found = {path for path, module in small.named_modules() if isinstance(module, Int8)}
        if found != set(ranges):
            raise UserError(
                f"{RANGES} has the ranges of another {name}: it names {len(ranges)} layers, of which there are "
                f"{len(found)}; make it anew (worldenv-train --from-scratch does) or take --precision float32"
            )
        return small
