"""What config.json keeps of a run, and the configurations that continue and evaluate the run with it."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from worldenv.config import PARTS, EvaluateConfig, TrainConfig, is_placeholder, released
from worldenv.errors import UserError
from worldenv.evaluation.perceptual import present
from worldenv.fields import differences, from_document, shown
from worldenv.launch.config import LaunchConfig
from worldenv.programs import check_file, check_name, import_checked
from worldenv.records.run_folder import RunFolder

POLICY = "policy.safetensors"  # in checkpoints/: the policy of a run that has practised to its end
MAY_DIFFER = ("--run", "--resume", "--device", "--launch", "--rl.offload")  # between the sessions of a run
Config = TypeVar("Config", TrainConfig, EvaluateConfig)


def settled(config: Config) -> Config:
    """The same configuration with absolute paths: it means the same in every folder, a simulator's own too."""
    if config.run is not None:
        config = replace(config, run=config.run.absolute())
    if config.models is not None:
        config = replace(config, models=config.models.resolve())
    if config.eval is not None and config.eval.weights is not None:
        config = replace(config, eval=replace(config.eval, weights=config.eval.weights.resolve()))
    for part in PARTS:
        name = getattr(config, part)
        if name is not None and (found := released(name)) is not None and not is_placeholder(name):
            kind, folder = found
            config = replace(config, **{part: f"{kind}:{Path(folder).expanduser().resolve()}"})
    return config


def document(config: TrainConfig | EvaluateConfig) -> dict[str, Any]:
    """What config.json keeps of a settled configuration whose parts have been found."""
    kept = asdict(config)
    for name in ("run", "resume", "launch"):  # where the folder lies, and which session this is
        kept.pop(name, None)
    files = {}
    for module in _modules(getattr(config, name) for name in PARTS):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and Path(file).is_file():  # not what is built in or lies in an archive
            files[module] = str(Path(file).resolve())
    return json.loads(json.dumps(kept | {"modules": files}, default=str))


def _modules(names: Iterable[str]) -> list[str]:
    return sorted({name.partition(":")[0] for name in names if ":" in name and released(name) is None})


def saved_config(folder: RunFolder, **replaced: Any) -> TrainConfig:
    """The configuration of a training run, but for the fields in `replaced`.

    Raises UserError if the folder is no training run, or its config.json does not hold what it should.
    """
    if "rl" not in folder.config:
        raise UserError(f"{folder.path} is no training run of this version: its config.json has no settings of rl")
    kept = {name: value for name, value in folder.config.items() if name != "modules"}
    kept |= {"run": None, "resume": False, "launch": asdict(LaunchConfig())} | replaced
    return from_document(TrainConfig, kept, str(folder.path / "config.json"))


def check_unchanged(folder: RunFolder, config: TrainConfig) -> None:
    """Raise UserError unless `config` continues the run: all is as it was, but for more iterations.

    Rounds share the iterations, so a run of several keeps its number.
    """
    saved = settled(saved_config(folder, device=config.device))
    changed = [
        f"{option} is {shown(new)}, was {shown(old)}"
        for option, old, new in differences(saved, config)
        if {option, option.partition(".")[0]}.isdisjoint(MAY_DIFFER)
        and not (option == "--rl.iterations" and new > old and config.rounds == 1)
    ]
    if changed:
        raise UserError(
            f"the run {folder.path} cannot be continued with other settings: {'; '.join(changed)}; leave them out, or "
            "choose another --run"
        )


def find_modules(folder: RunFolder, names: Iterable[str]) -> None:
    """Import the modules of the user's own parts from the files from which the run took them.

    Raises UserError, before anything of a module is executed, if its file is gone, if another module of that name is
    found first, or if it is refused by worldenv.programs: the run may be a stranger's.
    """
    kept = folder.config.get("modules")
    if not isinstance(kept, Mapping):
        raise UserError(f"{folder.path / 'config.json'} was made by another version of worldenv: it lacks 'modules'")
    for module in _modules(names):
        check_name(folder.path, module)
        if module not in kept:  # one of a notebook, or in an archive
            if module not in sys.modules:
                raise UserError(
                    f"the run {folder.path} does not say from which file it took {module}: name the part on the "
                    "command line"
                )
            continue
        file = Path(str(kept[module])).resolve()
        advice = f"the run {folder.path} used {module} from {file}"
        if not file.is_file():
            raise UserError(f"{advice}, which is gone; put it back, or name the part that should take its place")
        with _searched(_root(module, file)) as is_trusted:
            found = import_checked(folder.path, module, file, is_trusted)
            if found != file:
                raise UserError(
                    f"{advice}, but Python finds {found or 'no such module'} here; change to another folder, or name "
                    "the part on the command line to use what is found here"
                )


@contextmanager
def _searched(root: str) -> Iterator[bool]:
    """Have Python look for modules in the folder, from now on unless the block fails; gives whether it did before."""
    is_new = root not in sys.path
    if is_new:
        sys.path.insert(_last_resort(), root)
    try:
        yield not is_new
    except BaseException:
        if is_new:
            sys.path.remove(root)
        raise


def _root(module: str, file: Path) -> str:
    """The folder in which `module` is looked for where `file` is found."""
    level = module.count(".") + (file.name == "__init__.py")
    return str(file.parents[min(level, len(file.parents) - 1)])


def _last_resort() -> int:
    # After all libraries, whose place no file of a user takes, and before the working directory of this process.
    return sys.path.index("", 1) if "" in sys.path[1:] else len(sys.path)


def check_weights(folder: RunFolder, config: TrainConfig) -> None:
    """Raise UserError if the TorchScript files with which the run measures are refused by worldenv.programs."""
    if config.eval.weights is not None:
        for file in present(config.eval.weights).values():
            check_file(folder.path, file)


def resolved(config: EvaluateConfig, has_weights: bool = False) -> EvaluateConfig:
    """The same with every None but `run` filled in: what the run used if `models` is one, or the default.

    `has_weights`: the user will name those of eval. Raises UserError as `saved_config`, `check_weights` and
    `find_modules` do.
    """
    used: dict[str, Any] = vars(TrainConfig())
    if is_run(config.models):
        folder = RunFolder(config.models)
        saved = saved_config(folder, device="cpu", precision="auto")
        if config.eval is None and not has_weights:
            check_weights(folder, saved)
        used = vars(saved) | {name: folder.config[name] for name in ("device", "precision")}
        find_modules(folder, (used[name] for name in PARTS if getattr(config, name) is None))
    lacking = [field.name for field in fields(config) if getattr(config, field.name) is None]
    return replace(config, **{name: used[name] for name in lacking if name not in ("run", "models")})


def is_run(path: Path | None) -> bool:
    """Whether the folder is a run's, and not one of models."""
    return path is not None and (path / "config.json").exists() and (path / "checkpoints").is_dir()
