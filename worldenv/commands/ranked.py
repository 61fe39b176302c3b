"""A job of several ranks: what is checked before it begins."""

from collections.abc import Callable
from typing import Any

import torch

from worldenv.commands.saved import document
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.launch.ranks import Ranks
from worldenv.launch.share import ranks_here
from worldenv.records.run_folder import RunFolder
from worldenv.rl.needs import check_enough_groups
from worldenv.training.fit import Schedule


def check_ranks(config: TrainConfig | EvaluateConfig, ranks: Ranks) -> None:
    """Raise UserError for what several ranks cannot do, and for ranks that were told different things."""
    trains = isinstance(config, TrainConfig)
    if config.launch.shard and not trains:
        raise UserError("--launch.shard shares a policy out while it learns, and an evaluation does not; leave it out")
    if config.launch.ray.max_failures and not trains:
        raise UserError(
            "--launch.ray.max-failures lets a run be resumed, and an evaluation is not resumed: leave the option out"
        )
    if ranks.count == 1:
        if config.launch.shard:
            raise UserError("--launch.shard shares a policy out to several ranks, and there is one; leave it out")
        return
    if config.launch.count not in (1, ranks.count):
        raise UserError(
            f"--launch asks for {config.launch.count} ranks, but {ranks.count} were started: leave --launch out if "
            "torchrun starts the ranks"
        )
    if config.device == "cuda" and ranks_here() > torch.cuda.device_count():
        raise UserError(
            f"there are {ranks_here()} ranks on this machine, and torch finds {torch.cuda.device_count()} CUDA devices "
            "here: start at most as many ranks as devices"
        )
    own = {"run": str(config.run)}
    if trains:
        check_enough_groups(ranks.count, config.rl)
        _check_batches(config, ranks)
        own |= {"resume": config.resume, "launch": {"shard": config.launch.shard}}
    ranks.check_alike(_options(own | document(config)))


def _check_batches(config: TrainConfig, ranks: Ranks) -> None:
    """Raise UserError if a batch of the models that are to be made has fewer rows than there are ranks."""
    trained = {"scratch": config.from_scratch, "refresh": config.rounds > 1}
    for name in (name for name, is_made in trained.items() if is_made):
        for stage, schedule in vars(getattr(config, name)).items():
            rows = schedule.batch // (2 if stage == "adapt" else 1) if isinstance(schedule, Schedule) else ranks.count
            if rows < ranks.count:
                raise UserError(
                    f"there are {ranks.count} ranks, and --{name}.{stage}.batch {schedule.batch} gives work to at most "
                    f"{rows} of them: start fewer, or take a larger batch"
                )


def _options(document: dict[str, Any], prefix: str = "--") -> dict[str, Any]:
    """The fields of a configuration by the names of their options."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        option = prefix + name.replace("_", "-")
        found |= _options(value, f"{option}.") if isinstance(value, dict) else {option: value}
    return found


def opened_by(ranks: Ranks, create: Callable[[], RunFolder]) -> RunFolder:
    """The run folder: rank 0 opens it to write, the others to read. Raises UserError unless all see it."""
    folder = create() if ranks.first else None
    path = ranks.from_first(folder and folder.path)
    if ranks.watch is not None:
        ranks.watch.run = path
    ranks.check_seen(path)
    return folder or RunFolder(path)
