"""The state of practice on disk: policy, optimizer and counts after the last iteration, by which a run goes on."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from worldenv.errors import UserError
from worldenv.records.checkpoint import CheckpointError, load_state, save_state
from worldenv.records.resumption import check_state
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.critic import Critic
from worldenv.rl.learner import Learner
from worldenv.rl.off_policy import Ahead

STAGE = "post_train"
COUNTS = ("groups", "groups_without_signal", "broken_episodes", "skipped_steps")
PARTS = {"policy": dict, "iteration": int, "counts": dict}  # of a state, besides what all states have
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
SHARDS = f"{STAGE}.*.shards"  # folders beside the state, which names the one that belongs to it


def path_of(folder: RunFolder) -> Path:
    """The file of the state."""
    return folder.checkpoints / f"{STAGE}.state.safetensors"


def save(
    folder: RunFolder,
    learner: Learner,
    run: dict[str, Any],
    iteration: int,
    counts: dict[str, int],
    ahead: Ahead | None = None,
    critic: Critic | None = None,
) -> None:
    """Write the state; all ranks call it. A policy in shards is written by all of them, beside the file of rank 0."""
    path = path_of(folder)
    optimizer, shards = learner.optimizer.state_dict(), SHARDS.replace("*", str(iteration))
    if learner.sharded:
        from worldenv.records.shards import save_shards  # imports what only large policies need

        save_shards(path.with_name(shards), _tensors(learner, optimizer["state"]), learner.ranks)
        steps = {i: {"step": moments["step"]} for i, moments in optimizer["state"].items()}
        parts = {"shards": shards, "optimizer": optimizer | {"state": steps}}
    else:
        parts = {"policy": learner.policy.state_dict(), "optimizer": optimizer}
    if ahead is not None:
        parts["acts"] = ahead.state()
    if critic is not None:
        parts["critic"] = critic.state()
    if learner.ranks.first:
        save_state(path, run=run, iteration=iteration, counts=counts, **parts)
        for folder_before in path.parent.glob(SHARDS):
            if folder_before.name != parts.get("shards"):
                shutil.rmtree(folder_before, ignore_errors=True)


def resume(
    folder: RunFolder,
    learner: Learner,
    run: dict[str, Any],
    ahead: Ahead | None = None,
    critic: Critic | None = None,
) -> tuple[int, dict[str, int]]:
    """Put the state of the run, if there is one, into the other arguments; returns the iterations done and the counts.

    One process or many may have written it, in shards or whole. Raises CheckpointError and UserError as `post_train`
    says.
    """
    path = path_of(folder)
    if os.path.lexists(path):
        state = load_state(path)
        if "shards" in state:
            state |= _from_shards(path, state, learner)
        kinds = PARTS | ({} if ahead is None else {"acts": dict}) | ({} if critic is None else {"critic": dict})
        check_state(path, state, kinds, run, learner.policy, "policy", learner.optimizer)
        if ahead is not None and not ahead.fits(state["acts"]):
            raise CheckpointError(f"{path}: the weights that act next are damaged; begin again with another --run")
        _check_progress(path, state["iteration"], state["counts"], learner.config)
        _check_lines(path, state["iteration"], folder)
        if critic is not None:
            _take_up_critic(path, critic, state["critic"])
        learner.take_up(state["policy"], state["optimizer"], state["counts"]["skipped_steps"])
        if ahead is not None:
            ahead.take_up(state["acts"])
            learner.begun = True  # the policy that acts is another one from the first step on
        return state["iteration"], state["counts"]
    if len(folder.metrics(STAGE)) > 1:  # more than the one line that a kill can leave without a state
        warnings.warn(
            f"{path} is missing: practice begins again, and the lines that it logged are removed", stacklevel=3
        )
    return 0, dict.fromkeys(COUNTS, 0)


def _take_up_critic(path: Path, critic: Critic, state: dict[str, Any]) -> None:
    try:
        critic.take_up(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its critic is damaged; begin again with another --run") from error


def _tensors(learner: Learner, moments: dict[int, Any]) -> dict[str, Tensor]:
    """All that is in shards: the weights that are saved, and two moments for each parameter that has some."""
    out = {f"policy.{name}": tensor for name, tensor in learner.policy.state_dict().items()}
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    return out | {f"{name}.{i}": moments[i].get(name, parameters[i]) for i in moments for name in MOMENTS}


def _from_shards(path: Path, state: dict[str, Any], learner: Learner) -> dict[str, Any]:
    """Policy and optimizer of a state that names a folder of shards, laid out as this learner's are."""
    from worldenv.records.shards import load_shards

    try:
        shards, steps = path.with_name(Path(state["shards"]).name), dict(state["optimizer"]["state"])
        like = _tensors(learner, steps)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its optimizer is damaged; begin again with another --run") from error
    found = load_shards(shards, like)
    weights = {name.removeprefix("policy."): tensor for name, tensor in found.items() if name.startswith("policy.")}
    moments = {i: own | {name: found[f"{name}.{i}"] for name in MOMENTS} for i, own in steps.items()}
    return {"policy": weights, "optimizer": state["optimizer"] | {"state": moments}}


def _check_progress(path: Path, iteration: int, counts: dict[str, int], config: PostTrainConfig) -> None:
    if not 1 <= iteration <= config.iterations:
        raise CheckpointError(
            f"{path}: has {iteration} iterations, and the run is to have {config.iterations}; give at least as many "
            "--rl.iterations"
        )
    if counts.keys() != set(COUNTS) or any(type(count) is not int or count < 0 for count in counts.values()):
        raise CheckpointError(f"{path}: its counts are damaged; begin again with another --run")


def _check_lines(path: Path, iterations: int, folder: RunFolder) -> None:
    steps = [line["step"] for line in folder.metrics(STAGE)]
    logged = len(steps)  # a kill between line and state leaves one line more
    if steps != list(range(logged)) or logged not in (iterations, iterations + 1):
        raise UserError(
            f"{folder.path / 'metrics.jsonl'} does not have one line for each of the {iterations} iterations that "
            f"{path.name} has: restore it from a copy, or delete {path} to practise again from the beginning"
        )
