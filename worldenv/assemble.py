"""Suite, policy, world model and reflector by name: the only file that knows which classes there are."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from worldenv.config import TrainConfig, check_given, released
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError, nearest
from worldenv.fields import shown
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.suite import Suite
from worldenv.interfaces.world import WorldModel
from worldenv.nn.cost import Cost, size_of
from worldenv.nn.int8 import Conv, Int8, Linear, Ranges, check_precision, in_int8, is_fast
from worldenv.ops import missing_faces
from worldenv.policy.small import SmallPolicy, small_policy_cost
from worldenv.records.model_files import RANGES, ROLES, load_ranges, shipped
from worldenv.reflector.small import SmallReflector, small_reflector_cost
from worldenv.released_models import KINDS, kinds_of
from worldenv.rollout.checks import (
    check_config,
    check_count,
    check_members,
    check_robot,
    check_suite,
    check_views_named,
)
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.libero.suite import LiberoSuite, panda
from worldenv.suites.libero.tasks import HORIZONS, PERTURBED, SMALL
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.metaworld.tasks import SETS
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.worlds.causal.cost import causal_cost
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.cost import composer_cost
from worldenv.worlds.composer.world import ComposerWorld

DEFAULT_ENGINE, DEFAULT_ENV = EngineConfig(), EnvConfig()


def _load_causal(path: Path, suite: Suite) -> CausalWorld:
    if path.parent == shipped() and not path.exists():
        raise UserError(
            "the package has no weights of the causal world model: `worldenv-train tabletop-causal` trains them; then "
            "give --models FOLDER, its runs/.../models"
        )
    return CausalWorld.load(path, suite.robot, suite.views[0])


INTERFACES = {"suite": Suite, "policy": Policy, "world": WorldModel, "reflector": Reflector}
# Name -> what builds the part: a suite from nothing, the others from the folder of the models and the suite; a released
# model, KIND:FOLDER, from its own folder and the suite.
SUITES: dict[str, Callable[[], Suite]] = {
    "tabletop": TabletopSuite,
    **{name: partial(LiberoSuite, name) for name in HORIZONS},
    # As released policies have seen it: large pictures with reflections and smooth edges.
    **{f"{name}-official": partial(LiberoSuite, name, size=256, pictures="official") for name in HORIZONS},
    **{name: partial(LiberoSuite, benchmark, **given) for name, (benchmark, given) in (SMALL | PERTURBED).items()},
    **{name: partial(MetaWorldSuite, name) for name in SETS},
}
POLICIES: dict[str, Callable[[Path, Suite], Policy]] = {
    "small": lambda models, suite: SmallPolicy.load(models / "policy.safetensors"),
    **kinds_of("policy"),
}
WORLDS: dict[str, Callable[[Path, Suite], WorldModel]] = {
    "composer": lambda models, suite: ComposerWorld.load(models / "composer.safetensors", suite.robot, suite.views[0]),
    "causal": lambda models, suite: _load_causal(models / "causal.safetensors", suite),
    **kinds_of("world"),
}
REFLECTORS: dict[str, Callable[[Path, Suite], Reflector]] = {
    "small": lambda models, suite: SmallReflector.load(models / "reflector.safetensors"),
    "zero-shot": lambda models, suite: SmallReflector.load(models / "reflector.safetensors", zero_shot=True),
    **kinds_of("reflector"),
}
NAMED = {"suite": SUITES, "policy": POLICIES, "world": WORLDS, "reflector": REFLECTORS}

# Class -> what counts the cost of a small part that is there, of the suite and the policy's chunk.
COSTS_OF: dict[type, Callable[[Any, Any, int], Cost]] = {
    SmallPolicy: lambda part, suite, _: small_policy_cost(part, suite.size, suite.robot.proprio_size),
    ComposerWorld: lambda part, suite, chunk: composer_cost(part, chunk),
    CausalWorld: lambda part, suite, chunk: causal_cost(part.network.config, part.levels, chunk),
    SmallReflector: lambda part, suite, chunk: small_reflector_cost(part, suite.size, chunk),
}
DEFAULT_CHUNK = 8  # where a policy's own is not told


@dataclass
class Parts:
    """What a run consists of."""

    suite: Suite
    policy: Policy
    world: WorldModel
    reflector: Reflector
    ranges: dict[str, Ranges] | None = None  # of the inputs of the networks' layers, for 8 bits

    def to_imagine(self, precision: str) -> "Parts":
        """The parts that imagine: for int8, copies that compute in 8 bits and share all parameters; else these parts.

        auto means int8 if the ranges are known and the models are on a CPU with fast 8-bit products, else float32.
        Raises UserError if int8 is asked for and impossible, or if the ranges belong to other models.
        """
        check_precision(precision)
        on_cpu = self.world.device.type == "cpu"
        if precision == "float32" or (precision == "auto" and not (is_fast() and self.ranges is not None and on_cpu)):
            return self
        if self.ranges is None:
            raise UserError(f"the models have no {RANGES}, which --precision int8 needs; take auto")
        if not on_cpu:
            raise UserError(f"the models are on {self.world.device}; --precision int8 is for the CPU")
        return replace(self, **{name: self._in_int8(name) for name in ROLES})

    def _in_int8(self, name: str) -> Any:
        part, ranges = getattr(self, name), self.ranges.get(name)
        if ranges is None or not any(isinstance(module, Conv | Linear) for module in _modules(part)):
            return part  # one of the user's own: it keeps its floats
        small = part.in_int8(ranges) if hasattr(part, "in_int8") else in_int8(part, ranges)
        found = {path for path, module in _network(small).named_modules() if isinstance(module, Int8)}
        if found != set(ranges):
            raise UserError(
                f"{RANGES} belongs to another {name}: it names {len(ranges)} layers, and of these the {name} has "
                f"{len(found)}; make it again (worldenv-train --from-scratch does) or take --precision float32"
            )
        return small

    def networks(self) -> dict[str, nn.Module]:
        """The networks, by the names under which `ranges` lists them."""
        return {name: _network(getattr(self, name)) for name in ROLES}


def _modules(part: Any) -> Iterable[nn.Module]:
    network = part if isinstance(part, nn.Module) else getattr(part, "network", None)
    return network.modules() if isinstance(network, nn.Module) else ()


def _network(part: Any) -> nn.Module:
    return part if isinstance(part, nn.Module) else part.network


def load(
    models: Path | str | None = None,  # the folder of the models; None: the weights in the package
    suite: str = "tabletop",
    policy: str = "small",
    world: str = "composer",
    reflector: str = "small",
    device: torch.device | str = "cpu",
) -> Parts:
    """Build the parts of a run. Every name is one of this package's, or `module:function` of your own.

    The function of a suite takes no argument; those of the others take the folder of the models (a Path) and the suite.
    A released model is named by its kind and its own folder, such as `openvla-oft:FOLDER` or `vlm:FOLDER`.
    Raises UserError for an unknown name, CheckpointError for a file that is missing or damaged.
    """
    folder, device = _folder(models), _device(device)
    check_names(suite, policy, world, reflector)
    made = _built("suite", suite, SUITES)
    check_suite(made)
    names = {"policy": policy, "world": world, "reflector": reflector}
    _inspect(made, names)
    released_last = sorted(ROLES, key=lambda role: released(names[role]) is not None)  # they may be large
    parts = Parts(made, **{role: _built(role, names[role], NAMED[role], folder, made) for role in released_last})
    _check_parts(parts)
    parts.ranges = _ranges(folder, names, parts)
    for role in ROLES:
        _check_faces(role, getattr(parts, role), device)
    for role in ROLES:
        _move(getattr(parts, role), device)
    return parts


def costs(config: TrainConfig) -> tuple[Any, dict[str, Cost]]:
    """An outline of the suite (name, views, horizon, robot, size), and what policy, world model and reflector need.

    Of a released model, only configuration and headers are read; parts of other kinds are loaded, which are small.
    LIBERO need not be installed. Raises UserError as `load` does.
    """
    check_names(*(getattr(config, name) for name in INTERFACES))
    given = None if config.from_scratch else config.models  # from scratch, it is no whole set of models
    suite, models, chunk, found = outline(config.suite), given or shipped(), 0, {}
    for role in ROLES:
        name = getattr(config, role)
        if (kind := released(name)) is not None:
            cost = KINDS[role, kind[0]].cost(Path(kind[1]).expanduser(), suite, chunk)
        else:
            cost = _of_small(_built(role, name, NAMED[role], models, suite), suite, chunk)
        found[role], chunk = cost, chunk or cost.chunk or DEFAULT_CHUNK
    return suite, found


def outline(name: str) -> Any:
    make = SUITES.get(name)
    if isinstance(make, partial) and make.func is LiberoSuite:
        kept = signature(LiberoSuite).parameters
        size, views, repeat = (make.keywords.get(key, kept[key].default) for key in ("size", "views", "repeat"))
        horizon = make.keywords.get("horizon", HORIZONS[make.args[0]])
        return SimpleNamespace(
            name=make.args[0], horizon=horizon, size=size, views=views, robot=panda(repeat, make.args[0])
        )
    suite = _built("suite", name, SUITES)
    size = suite.reset(suite.tasks[:1], [0], "validation").seen.frames.shape[-2]
    return SimpleNamespace(name=suite.name, horizon=suite.horizon, size=size, views=suite.views, robot=suite.robot)


def _of_small(part: Any, suite: Any, chunk: int) -> Cost:
    """Of a part that is there: all, or, where it is the user's own, what can be told of it without acting."""
    if count := COSTS_OF.get(type(part)):
        return count(part, suite, chunk)
    size, learns = size_of(_network(part)), 0
    if hasattr(part, "trainable") and hasattr(part, "act"):
        learns = sum(parameter.numel() for parameter in part.trainable())
    return Cost(*size, learns, getattr(part, "chunk", None), slot_bytes=None, record_bytes=None, update_bytes=None)


def _built(role: str, name: str, known: Mapping[str, Callable], *given: Any) -> Any:
    try:
        return named(role, name, known)(*given)
    except TypeError as error:
        if error.__traceback__.tb_next is None:  # not from within the function
            takes = "the folder of the models (a Path) and the suite" if given else "no argument"
            raise UserError(f"{role} {name!r} cannot be called: {error}; it should take {takes}") from error
        raise


def check_names(suite: str, policy: str, world: str, reflector: str) -> None:
    """Raise UserError for a name that nothing is known by, before anything is built, and for folders not yet given."""
    check_given(policy=policy, world=world, reflector=reflector)
    for role, name in {"suite": suite, "policy": policy, "world": world, "reflector": reflector}.items():
        named(role, name, NAMED[role])


def _inspect(suite: Suite, names: Mapping[str, str]) -> None:
    """Raise UserError for what is wrong with the folder of any released model, before any of them is read."""
    for role, name in names.items():
        if (kind := released(name)) is not None:
            KINDS[role, kind[0]].inspect(Path(kind[1]).expanduser(), suite)


def _folder(models: Path | str | None) -> Path:
    if models is None:
        return shipped()
    if not isinstance(models, str | os.PathLike) or not str(models).strip():
        raise UserError(
            f"models is {shown(models)}; it should be the path of a folder, or None for the shipped weights"
        )
    folder = Path(models).expanduser()
    if os.path.exists(folder) and not folder.is_dir():
        raise UserError(f"models is {folder}, which is no folder; give the folder of the models")
    return folder


def _device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device) if isinstance(device, str | torch.device) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"device is {shown(device)}; it should be cpu or cuda, or one of several: cuda:0, cuda:1 ...")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {found}; torch finds {torch.cuda.device_count()} CUDA devices here: take cpu")
    return torch.device("cpu") if found.type == "cpu" else found  # cpu:0 would count as another device


def _check_parts(parts: Parts) -> None:
    """Raise UserError for a part that lacks a member of its interface or has one of another kind, and for views that
    differ."""
    if not isinstance(parts, Parts):
        raise UserError(f"parts is a {type(parts).__name__}; it should be worldenv.Parts, as worldenv.load returns")
    for role in INTERFACES:
        check_members(role, getattr(parts, role), INTERFACES[role], *["state_dict"] * (role == "policy"))
    check_suite(parts.suite)
    for role in ("policy", "world"):
        part = getattr(parts, role)
        check_views_named(f"the {role}", part.views)
        check_count(f"chunk of the {role}", part.chunk)
    check_robot("world", parts.world.robot)
    if not getattr(parts.world, "moves_proprio", True) and getattr(parts.policy, "reads_proprio", True):
        raise UserError(
            f"the policy reads proprioception, which this world model does not imagine, and the robot of "
            f"{parts.suite.name} has no kinematics: take a policy that reads pictures alone, or give the suite's robot "
            "kinematics (docs/your_robot.md)"
        )
    if tuple(parts.suite.views) != tuple(parts.world.views):
        raise UserError(
            f"the suite shows the views {', '.join(parts.suite.views)}, the world model imagines "
            f"{', '.join(parts.world.views)}; they should be the same, in one order"
        )


def named(role: str, name: str, known: Mapping[str, Callable]) -> Callable:
    """The function that builds a part: one of this package, of a released model, or the user's `module:function`.

    Raises UserError if there is no such name, module or function. Modules of the working directory are found, too.
    """
    if not isinstance(name, str):
        raise UserError(f"{role} is {shown(name)}; it should be a name, or module:function of your own")
    if (found := released(name)) is not None:
        build = known.get(f"{found[0]}:FOLDER")
        if build is None or not found[1]:
            raise UserError(f"unknown {role} {name!r}{nearest(name, known)}; for your own: module:function")
        return lambda models, suite: build(Path(found[1]).expanduser(), suite)
    if ":" not in name:
        if name not in known:
            raise UserError(f"unknown {role} {name!r}{nearest(name, known)}; for your own: module:function")
        return known[name]
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # last, so that no file of the working directory takes the place of a library
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: an empty name, a relative one
        raise UserError(
            f"{role} {name!r} cannot be found: {error}. It should be module:function, importable"
        ) from error
    if not callable(found):
        raise UserError(f"{role} {name!r} is a {type(found).__name__}; it should be a function that builds the {role}")
    return found


def _ranges(folder: Path, names: Mapping[str, str], parts: Parts) -> dict[str, Ranges] | None:
    """Those of the parts of this package; a part of the user's own was not measured."""
    path = folder / RANGES
    if names["world"] != "composer" or not os.path.lexists(path):
        return None
    return load_ranges(path, {role: _network(getattr(parts, role)) for role in ROLES if ":" not in names[role]})


def _check_faces(role: str, part: Any, device: torch.device) -> None:
    """Raise UserError for a part whose ops would run their references on a GPU: slow, and nothing would say so."""
    missing = missing_faces(getattr(part, "ops", ()), device) if device.type == "cuda" else []
    if missing:
        raise UserError(
            f"the {role} is {type(part).__name__}, which has no GPU kernels for {', '.join(missing)}; on a GPU take "
            "--world causal (worldenv-train tabletop-causal trains its weights), or --device cpu"
        )


def _move(part: Any, device: torch.device | str) -> None:
    if isinstance(part, nn.Module):
        part.eval()  # dropout and the like are for training
    if isinstance(part, nn.Module) or isinstance(getattr(part, "network", None), nn.Module):
        _network(part).to(device)


def make_engine(parts: Parts, config: EngineConfig = DEFAULT_ENGINE, precision: str = "auto") -> Engine:
    """The engine that imagines with these parts; precision: float32, int8, or auto (int8 where the CPU is fast).

    Changed weights take effect from the next run on. A part that is replaced in `parts` has no effect, and a layer that
    is replaced is refused in int8.
    """
    _check_parts(parts)
    check_config(config, EngineConfig)
    imagining = parts.to_imagine(precision)
    config = replace(config, horizon=config.horizon or parts.suite.horizon)
    return Engine(imagining.policy, imagining.world, imagining.reflector, config)


def make_env(parts: Parts, starts: Starts, config: EnvConfig = DEFAULT_ENV, precision: str = "auto") -> WorldModelEnv:
    """An environment of imagined episodes for another training loop; `precision` as in `make_engine`."""
    _check_parts(parts)
    check_config(config, EnvConfig)
    imagining = parts.to_imagine(precision)
    config = replace(config, horizon=config.horizon or parts.suite.horizon)
    return WorldModelEnv(imagining.world, imagining.reflector, starts, config)
