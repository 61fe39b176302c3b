"""Measure a policy: in the true environment and in imagination, from the same held-out start states."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.agreement import outcomes
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.consistency import consistency, has_detector
from worldenv.evaluation.perceptual import check_networks, perceptual_quality
from worldenv.evaluation.pictures import psnr, ssim
from worldenv.evaluation.replayed import Replayed, replay_episodes
from worldenv.evaluation.truth import (
    Outcome,
    act_in_true,
    groups_of,
    judge_outcome,
    judge_trajectories,
    starts_of,
)
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.suite import Suite, Task
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.records.progress import Progress
from worldenv.rollout.checks import check_begun, check_seed, check_suite
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Rollouts

PRACTICE_STARTS = 960  # start states of the training split to practise from, unless the suite says fewer
PRACTICE_FIRST = 2_000_000  # the first of them: neither demonstrations nor exploration use such numbers
VALIDATION_EPISODES = 100  # true and imagined ones, each time that practice is looked at
START_SEED_STRIDE = 100_003  # between the first start states of two start seeds


@dataclass
class Measurement:
    """One policy, measured in the true environment and in imagination from the same held-out starts."""

    true: Outcome
    trajectories: list[Trajectory]
    imagined: Rollouts
    quality: dict
    instructions: dict[str, str]  # of each task, the canonical one
    consistency: dict = field(default_factory=dict)
    likely: float | None = None  # of the reflector: the reward above which success is likely

    @property
    def imagined_success(self) -> float:
        return self.imagined.succeeded(self.likely).float().mean().item()

    @property
    def imagined_minus_true(self) -> float:
        """Share of imagined episodes that succeed, minus share of true ones that succeed at some time.

        Both from the same starts and over the same number of steps.
        """
        imagined, true = outcomes(self.imagined, self.trajectories, self.likely)
        return float(imagined.mean()) - float(true.mean())

    def document(self) -> dict:
        """True success by stopping rule, overall and per task; per task also the imagined success."""
        out = self.true.document(self.instructions)
        succeeded = self.imagined.succeeded(self.likely).numpy()
        for name, part in out["per_task"].items():
            rows = np.array(self.true.tasks[: len(succeeded)]) == name
            part["imagined"] = float(succeeded[rows].mean()) if rows.any() else None
        return out


def in_turn(suite: Suite, count: int) -> list[Task]:
    """`count` tasks: the tasks of the suite in turn."""
    return [suite.tasks[i % len(suite.tasks)] for i in range(count)]


def held_out(suite: Suite, start_seed: int, count: int) -> tuple[list[Task], list[int]]:
    """`count` (task, start state) pairs of the test split, the tasks in turn; every start_seed gives other starts."""
    return in_turn(suite, count), [start_seed * START_SEED_STRIDE + i // len(suite.tasks) for i in range(count)]


def practice_starts(suite: Suite, seed: int) -> Starts:
    """First observations of the training split, the tasks in turn: where practice begins.

    Raises UserError for a seed that is no integer, and if the suite does not return what its interface says.
    """
    check_seed(seed)
    check_suite(suite)
    count = min(getattr(suite, "practice_starts", PRACTICE_STARTS), PRACTICE_STARTS)
    first = PRACTICE_FIRST + int(seed) * PRACTICE_STARTS
    begun = suite.reset(in_turn(suite, count), range(first, first + count), "train")
    check_begun(begun, suite, count)
    return Starts(begun.seen.each(torch.clone), tuple(begun.texts))  # the suite may write over its own


def validate(
    suite: Suite, policy: Policy, engine: Engine, start_seed: int, seed: int, ranks: Ranks = ALONE
) -> dict[str, float]:
    """True and imagined success of a policy that practises, from validation starts, the same ones in every call.

    Ranks but the first one act out their share of the true episodes, and return nothing.
    A gap that opens between them shows that practice exploits what the world model or the reflector gets wrong.
    """
    tasks, starts = held_out(suite, start_seed, VALIDATION_EPISODES)
    trajectories = act_in_true(policy, suite, tasks, starts, "validation", ranks=ranks)
    if not ranks.first:
        return {}
    imagined = engine.run(starts_of(trajectories).to(engine.world.device), 1, seed, explore=False).to("cpu")
    likely = getattr(engine.reflector, "likely", None)
    imagined_success, success = (float(ends.mean()) for ends in outcomes(imagined, trajectories, likely))
    return {"validation_success": success, "validation_imagined_success": imagined_success}


def measure(
    suite: Suite,
    policy: Policy,
    reflector: Reflector,
    engine: Engine,
    config: EvalConfig,
    start_seed: int,
    seed: int,
    title: str,
    ranks: Ranks = ALONE,
) -> Measurement | None:
    """Act with the mean action: in the true environment to the horizon, in imagination until the reflector stops.

    For a suite with a detector imagination goes on to the horizon, too, and its frames are kept. `engine` imagines with
    the same policy and reflector, perhaps in 8 bits. Ranks but the first one act out their share of the true episodes,
    and return None.
    """
    if suite.horizon < engine.world.chunk:
        raise UserError(
            f"the horizon of the suite is {suite.horizon}, but the world model imagines {engine.world.chunk} frames at "
            "a time: none can be compared with true ones; take a longer horizon or a shorter pass"
        )
    if config.weights:
        check_networks(config.weights, engine.world.size)
    tasks, starts = held_out(suite, start_seed, config.episodes)
    with Progress(3 + len(groups_of(suite, tasks, ranks)), title) as progress:
        trajectories = act_in_true(policy, suite, tasks, starts, "test", progress=progress, ranks=ranks)
        if not ranks.first:
            return None
        outcome = judge_outcome(trajectories, *judge_trajectories(reflector, trajectories))
        progress.advance(success=f"{100 * outcome.success['oracle'].mean():.1f} %")
        few = trajectories[: config.quality]
        replayed = replay_episodes(engine, few, seed)
        quality = world_quality(replayed, outcome.success["oracle"][: len(few)], engine.world.chunk, config.weights)
        progress.advance()
        first, looks = starts_of(trajectories[: config.imagined]).to(engine.world.device), has_detector(suite)
        imagined = engine.run(first, 1, seed, explore=False, stop=not looks, video=looks).to("cpu")
        likely = getattr(reflector, "likely", None)
        found = consistency(suite, tasks, trajectories, outcome, imagined, replayed, seed, likely)
        imagined.video = imagined.proprio = None  # the largest by far, and looked at
        progress.advance()
    if broken := int(imagined.broken.sum()):
        warnings.warn(
            f"{title}: {broken} of {len(imagined.broken)} imagined episodes had numbers that are not finite, and count "
            "as failures",
            stacklevel=2,
        )
    instructions = {t.name: t.instructions[0] for t in suite.tasks}
    return Measurement(outcome, trajectories, imagined, quality, instructions, found, likely)


def world_quality(
    replayed: Replayed,
    success: np.ndarray,  # [N] bool, whether each of its episodes was a success at some time
    chunk: int,  # frames of a pass of the world model
    weights: Path | None = None,
) -> dict:
    """Replayed frames against true ones.

    Returns PSNR (dB) and SSIM for each pass of the world model (mean over episodes, views and the pass's frames), and
    `agreement`: the share of episodes in which the reflector, reading the imagined frames, agrees with the truth on
    whether the task was done at some time. With `weights`, also the metrics of `perceptual_quality`.
    """
    imagined = replayed.frames
    frames = torch.from_numpy(np.stack([t.frames for t in replayed.trajectories]))
    frames = frames[:, : imagined.shape[1]]  # whole passes only
    out = {"psnr": [], "ssim": []}
    for first in range(1, imagined.shape[1] - chunk + 1, chunk):
        pair = (imagined[:, first : first + chunk].flatten(0, 2), frames[:, first : first + chunk].flatten(0, 2))
        out["psnr"].append(psnr(*pair).mean().item())
        out["ssim"].append(ssim(*pair).mean().item())
    out["agreement"] = float((replayed.stop.any(1) == success).mean())
    out["episodes"] = len(imagined)
    views = [video.movedim(2, 1).flatten(0, 1) for video in (imagined, frames)]  # each view is a video of its own
    return out | (perceptual_quality(weights, *views, chunk) if weights else {})
