"""Measure a policy: in the true environment and in imagination, from the same held-out start states."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.perceptual import check_networks, perceptual_quality
from worldenv.evaluation.pictures import psnr, ssim
from worldenv.evaluation.truth import Outcome, act_in_true, judge_frames, judge_outcome, judge_trajectories, starts_of
from worldenv.interfaces.observation import Starts
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.suite import Suite, Task
from worldenv.records.progress import Progress
from worldenv.rollout.checks import check_begun, check_seed, check_suite
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Rollouts
from worldenv.rollout.replay import replay

PRACTICE_STARTS = 960  # start states of the training split to practise from
PRACTICE_FIRST = 2_000_000  # the first of them: neither demonstrations nor exploration use such numbers
START_SEED_STRIDE = 100_003  # between the first start states of two start seeds


@dataclass
class Measurement:
    """One policy, measured in the true environment and in imagination from the same held-out starts."""

    true: Outcome
    trajectories: list[Trajectory]
    imagined: Rollouts
    quality: dict
    instructions: dict[str, str]  # of each task, the canonical one

    @property
    def imagined_success(self) -> float:
        return self.imagined.stopped.float().mean().item()

    @property
    def imagined_minus_true(self) -> float:
        """Share of imagined episodes that the reflector stops, minus share of true ones that succeed at some time.

        Both from the same starts and over the same number of steps.
        """
        count, horizon = len(self.imagined.stopped), len(self.trajectories[0].actions)
        steps = min(self.imagined.reward[0].numel(), horizon)
        imagined = self.imagined.stopped & (self.imagined.stop <= steps)
        true = np.array([t.success[:steps].any() for t in self.trajectories[:count]])
        return imagined.float().mean().item() - float(true.mean())

    def document(self) -> dict:
        """True success by stopping rule, overall and per task; per task also the imagined success."""
        out = self.true.document(self.instructions)
        stopped = self.imagined.stopped.numpy()
        for name, part in out["per_task"].items():
            rows = np.array(self.true.tasks[: len(stopped)]) == name
            part["imagined"] = float(stopped[rows].mean()) if rows.any() else None
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
    first = PRACTICE_FIRST + int(seed) * PRACTICE_STARTS
    begun = suite.reset(in_turn(suite, PRACTICE_STARTS), range(first, first + PRACTICE_STARTS), "train")
    check_begun(begun, suite, PRACTICE_STARTS)
    return Starts(begun.seen.each(torch.clone), tuple(begun.texts))  # the suite may write over its own


def measure(
    suite: Suite,
    policy: Policy,
    reflector: Reflector,
    engine: Engine,
    config: EvalConfig,
    start_seed: int,
    seed: int,
    title: str,
) -> Measurement:
    """Act with the mean action: in the true environment to the horizon, in imagination until the reflector stops.

    `engine` imagines with the same policy and reflector, perhaps in 8 bits.
    """
    if suite.horizon < engine.world.chunk:
        raise UserError(
            f"the horizon of the suite is {suite.horizon}, but the world model imagines {engine.world.chunk} frames at "
            "a time: none can be compared with true ones; take a longer horizon or a shorter pass"
        )
    if config.weights:
        check_networks(config.weights, engine.world.size)
    tasks, starts = held_out(suite, start_seed, config.episodes)
    with Progress(4, title) as progress:
        trajectories = act_in_true(policy, suite, tasks, starts, "test")
        progress.advance()
        outcome = judge_outcome(trajectories, *judge_trajectories(reflector, trajectories))
        progress.advance(success=f"{100 * outcome.success['oracle'].mean():.1f} %")
        few = trajectories[: config.quality]
        quality = world_quality(engine, few, outcome.success["oracle"][: len(few)], seed, config.weights)
        progress.advance()
        first = starts_of(trajectories[: config.imagined]).to(engine.world.device)
        imagined = engine.run(first, 1, seed, explore=False).to("cpu")
        progress.advance()
    if broken := int(imagined.broken.sum()):
        warnings.warn(
            f"{title}: {broken} of {len(imagined.broken)} imagined episodes had numbers that are not finite, and count "
            "as failures",
            stacklevel=2,
        )
    return Measurement(outcome, trajectories, imagined, quality, {t.name: t.instructions[0] for t in suite.tasks})


def world_quality(
    engine: Engine, trajectories: Sequence[Trajectory], success: np.ndarray, seed: int, weights: Path | None = None
) -> dict:
    """Open-loop replay: the actions of true episodes are imagined; no true frame is read after the first.

    Returns PSNR (dB) and SSIM for each pass of the world model (mean over episodes, views and the pass's frames), and
    `agreement`: the share of episodes in which the reflector, reading the imagined frames, agrees with the truth on
    whether the task was done at some time. With `weights`, also the metrics of `perceptual_quality`.
    """
    frames = torch.from_numpy(np.stack([t.frames for t in trajectories]))
    actions = torch.from_numpy(np.stack([t.actions for t in trajectories]))
    starts, device = starts_of(trajectories), engine.world.device
    imagined = replay(engine.world, starts.to(device), actions.to(device), seed).cpu()
    frames = frames[:, : imagined.shape[1]]  # whole passes only
    k, out = engine.world.chunk, {"psnr": [], "ssim": []}
    for first in range(1, imagined.shape[1] - k + 1, k):
        pair = (imagined[:, first : first + k].flatten(0, 2), frames[:, first : first + k].flatten(0, 2))
        out["psnr"].append(psnr(*pair).mean().item())
        out["ssim"].append(ssim(*pair).mean().item())
    _, stop = judge_frames(engine.reflector, starts, imagined)
    out["agreement"] = float((stop.any(1).numpy() == success).mean())
    out["episodes"] = len(trajectories)
    views = [video.movedim(2, 1).flatten(0, 1) for video in (imagined, frames)]  # each view is a video of its own
    return out | (perceptual_quality(weights, *views, k) if weights else {})
