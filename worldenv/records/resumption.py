"""Whether a saved state is of the run that wants to go on from it, and fits its model and optimizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from worldenv.records.checkpoint import CheckpointError, check_fit
from worldenv.records.checksum import checksum


def identity(seed: int, module: nn.Module) -> dict[str, Any]:
    """What a state is known by: the seed of its run, and the weights that the training of `module` begins with."""
    return {"seed": seed, "first_weights": checksum({}, module.state_dict())}


def check_state(
    path: Path,
    state: Mapping[str, Any],  # has `run`, an identity, and `optimizer`
    kinds: Mapping[str, type],  # of the other parts
    run: Mapping[str, Any],  # the identity that it should have
    module: nn.Module,
    weights: str,  # the part that holds those of the module
    optimizer: Optimizer,
) -> None:
    """Raise CheckpointError unless `state`, which was read from `path`, can be put into module and optimizer."""
    if any(type(state.get(name)) is not kind for name, kind in {**kinds, "run": dict, "optimizer": dict}.items()):
        raise CheckpointError(f"{path}: not a state of this stage and version; begin again with another --run")
    _check_run(path, state["run"], run)
    check_fit(path, state[weights], module)
    if not _fits(state["optimizer"], optimizer):
        raise CheckpointError(f"{path}: its optimizer does not fit the model's; begin again with another --run")


def _check_run(path: Path, was: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    if was == run:
        return
    if was.get("seed") != run["seed"]:
        difference = f"it has the seed {was.get('seed')!r}, this run has {run['seed']}"
    else:
        difference = "its model began with other weights than the one that is given now"
    raise CheckpointError(
        f"{path}: the state of another run: {difference}; give the seed and the models that the run began with, or "
        "choose another --run"
    )


def _fits(state: Mapping[str, Any], optimizer: Optimizer) -> bool:
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(groups, list) or not isinstance(moments, dict):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    return (
        [isinstance(group, dict) and group.get("params") for group in groups] == expected
        and all(type(i) is int and 0 <= i < len(parameters) for i in moments)
        and all(_are_moments(moment, parameters[i]) for i, moment in moments.items())
    )


def _are_moments(moment: Any, parameter: Tensor) -> bool:  # of Adam
    return (
        isinstance(moment, dict)
        and moment.keys() == {"step", "exp_avg", "exp_avg_sq"}
        and all(isinstance(tensor, Tensor) for tensor in moment.values())
        and moment["exp_avg"].shape == moment["exp_avg_sq"].shape == parameter.shape
        and moment["step"].numel() == 1
    )
