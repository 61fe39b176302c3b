"""Measure a policy: in the true environment and in imagination, from the same held-out start states."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.agreement import outcomes
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.consistency import consistency, has_detector
from worldenv.evaluation.perceptual import check_networks, perceptual_quality
from worldenv.evaluation.pictures import psnr, ssim
from worldenv.evaluation.replayed import Replayed, replay_episodes
from worldenv.evaluation.truth import Outcome, act_and_judge, act_in_true, groups_of, judge_outcome, starts_of
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

    def figures(self) -> dict:
        """What a result says of the policy."""
        return {
            "success": self.document(),
            "imagined_success": self.imagined_success,
            "imagined_minus_true": self.imagined_minus_true,
            "false_stop": self.true.false_stop,
            "missed_stop": self.true.missed_stop,
            "world_model": self.quality,
            "consistency": self.consistency,
        }

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

    A gap that opens between them shows that practice exploits what the world model or the reflector gets wrong. All
    ranks share the episodes; those but the first one return nothing.
    """
    tasks, starts = held_out(suite, start_seed, VALIDATION_EPISODES)
    trajectories = act_in_true(policy, suite, tasks, starts, "validation", ranks=ranks)
    imagined = _imagined(engine, trajectories, seed, ranks)
    if imagined is None:
        return {}
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
    the same policy and reflector, perhaps in 8 bits. All ranks share the episodes, true, replayed and imagined; those
    but the first one return None.
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
        trajectories, *judged = act_and_judge(policy, suite, reflector, tasks, starts, "test", progress, ranks)
        progress.advance()
        again, looks = _replayed(engine, trajectories[: config.quality], seed, ranks), has_detector(suite)
        progress.advance()
        imagined = _imagined(engine, trajectories[: config.imagined], seed, ranks, stop=not looks, video=looks)
        if imagined is None or again is None:
            return None
        outcome, (replayed, pictures) = judge_outcome(trajectories, *judged), again
        success = outcome.success["oracle"]
        given = success[: len(replayed.trajectories)], engine.world.chunk, config.weights
        quality = world_quality(replayed, *given, pictures)
        likely = getattr(reflector, "likely", None)
        found = consistency(suite, tasks, trajectories, outcome, imagined, replayed, seed, likely)
        imagined.video = imagined.proprio = None  # the largest by far, and looked at
        progress.advance(success=f"{100 * success.mean():.1f} %")
    if broken := int(imagined.broken.sum()):
        warnings.warn(
            f"{title}: {broken} of {len(imagined.broken)} imagined episodes had numbers that are not finite, and count "
            "as failures",
            stacklevel=2,
        )
    instructions = {t.name: t.instructions[0] for t in suite.tasks}
    return Measurement(outcome, trajectories, imagined, quality, instructions, found, likely)


def _imagined(
    engine: Engine, trajectories: list[Trajectory], seed: int, ranks: Ranks, **flags: bool
) -> Rollouts | None:
    """Episodes of the mean action from the starts of those that rank 0 has; at rank 0, of all ranks."""
    starts = ranks.from_first(starts_of(trajectories) if ranks.first else None)
    rows, own = torch.arange(len(starts))[ranks.part(len(starts))], None
    if len(rows):
        begun = starts.pick(rows).to(engine.world.device)
        own = engine.run(begun, 1, seed, int(rows[0]), explore=False, **flags).to("cpu")
        own.record = None  # what a learner needs
    parts = ranks.to_first(own)
    return None if parts is None else Rollouts.joined([part for part in parts if part is not None])


def _replayed(
    engine: Engine, trajectories: list[Trajectory], seed: int, ranks: Ranks
) -> tuple[Replayed, tuple[Tensor, Tensor]] | None:
    """Replays of the episodes that rank 0 has, and their `picture_quality`; at rank 0, of all ranks."""
    few, own = ranks.dealt(trajectories), None
    first = ranks.before(len(few))
    if few:
        found = replay_episodes(engine, few, seed, first)
        own = found.frames, found.reward, found.stop, *picture_quality(found, engine.world.chunk)
    parts = ranks.to_first(own)
    if parts is None:
        return None
    columns = zip(*(part for part in parts if part is not None), strict=True)
    frames, reward, stop, psnr, ssim = (column[0] if len(column) == 1 else _joined(column) for column in columns)
    return Replayed(trajectories, frames, reward, stop), (psnr, ssim)


def _joined(parts: tuple) -> Tensor | np.ndarray:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def picture_quality(
    replayed: Replayed,
    chunk: int,  # frames of a pass of the world model
) -> tuple[Tensor, Tensor]:  # [N, passes, chunk * V] float64 each
    """PSNR (dB) and SSIM of every replayed frame against the true one, in whole passes."""
    imagined, found = replayed.frames, []
    frames = torch.from_numpy(np.stack([t.frames for t in replayed.trajectories]))
    for first in range(1, imagined.shape[1] - chunk + 1, chunk):
        pair = [video[:, first : first + chunk].flatten(0, 2) for video in (imagined, frames)]
        found.append([figure(*pair).view(len(imagined), -1) for figure in (psnr, ssim)])
    return tuple(torch.stack(part, dim=1) for part in zip(*found, strict=True))


def world_quality(
    replayed: Replayed,
    success: np.ndarray,  # [N] bool, whether each of its episodes was a success at some time
    chunk: int,  # frames of a pass of the world model
    weights: Path | None = None,
    pictures: tuple[Tensor, Tensor] | None = None,  # their `picture_quality`, if it is known
) -> dict:
    """Replayed frames against true ones.

    Returns PSNR (dB) and SSIM for each pass of the world model (mean over episodes, views and the pass's frames), and
    `agreement`: the share of episodes in which the reflector, reading the imagined frames, agrees with the truth on
    whether the task was done at some time. With `weights`, also the metrics of `perceptual_quality`.
    """
    imagined, figures = replayed.frames, pictures or picture_quality(replayed, chunk)
    out: dict = {
        name: [part.flatten().mean().item() for part in each.unbind(1)]
        for name, each in zip(("psnr", "ssim"), figures, strict=True)
    }
    out["agreement"] = float((replayed.stop.any(1) == success).mean())
    out["episodes"] = len(imagined)
    if weights is None:
        return out
    frames = torch.from_numpy(np.stack([t.frames for t in replayed.trajectories]))
    pair = imagined, frames[:, : imagined.shape[1]]  # whole passes only
    views = [video.movedim(2, 1).flatten(0, 1) for video in pair]  # each view is a video of its own
    return out | perceptual_quality(weights, *views, chunk)
