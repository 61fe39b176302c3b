"""Whether a saved state of post-training is of this run, and fits it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldenv.records.checkpoint import CheckpointError, check_fit
from worldenv.rl.learner import Learner

COUNTS = ("groups", "groups_without_signal", "broken_episodes", "skipped_steps")
PARTS = {"run": dict, "policy": dict, "optimizer": dict, "iteration": int, "counts": dict}


def check_state(path: Path, state: dict[str, Any], run: dict[str, Any], learner: Learner) -> None:
    """Raise CheckpointError unless post-training can go on from `state`, which was read from `path`."""
    if any(type(state.get(name)) is not kind for name, kind in PARTS.items()):
        raise CheckpointError(f"{path}: no state of post-training of this version; begin again with another --run")
    _check_run(path, state["run"], run)
    iterations, counts = learner.config.iterations, state["counts"]
    if not 1 <= state["iteration"] <= iterations:
        raise CheckpointError(
            f"{path}: has {state['iteration']} iterations, and the run is to have {iterations}; give at least as many "
            "--rl.iterations"
        )
    if counts.keys() != set(COUNTS) or any(type(count) is not int or count < 0 for count in counts.values()):
        raise CheckpointError(f"{path}: its counts are damaged; begin again with another --run")
    check_fit(path, state["policy"], learner.policy)
    _check_optimizer(path, state["optimizer"], learner.optimizer)


def _check_run(path: Path, was: dict[str, Any], run: dict[str, Any]) -> None:
    if was == run:
        return
    if was.get("seed") != run["seed"]:
        difference = f"it has the seed {was.get('seed')!r}, this run has {run['seed']}"
    else:
        difference = "its policy began with other weights than the one that is given now"
    raise CheckpointError(
        f"{path}: the state of another run: {difference}; give the seed and the models that the run began with, or "
        "choose another --run"
    )


def _check_optimizer(path: Path, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    expected, groups, moments = optimizer.state_dict(), state.get("param_groups"), state.get("state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fits = (
        isinstance(groups, list)
        and len(groups) == len(expected["param_groups"])
        and all(isinstance(group, dict) for group in groups)
        and all(a.get("params") == b["params"] for a, b in zip(groups, expected["param_groups"], strict=True))
        and isinstance(moments, dict)
        and all(type(i) is int and 0 <= i < len(parameters) for i in moments)
        and all(_is_moment(moment, parameters[i]) for i, moment in moments.items())
    )
    if not fits:
        raise CheckpointError(f"{path}: its optimizer does not fit the policy's; begin again with another --run")


def _is_moment(moment: Any, parameter: Tensor) -> bool:
    return (
        isinstance(moment, dict)
        and moment.keys() == {"step", "exp_avg", "exp_avg_sq"}
        and all(isinstance(tensor, Tensor) for tensor in moment.values())
        and moment["exp_avg"].shape == moment["exp_avg_sq"].shape == parameter.shape
        and moment["step"].numel() == 1
    )
