"""The policy in the true environment, stopped three ways: by an oracle, by the reflector, not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from worldenv.data.trajectories import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.perceptual import perceptual_quality, present
from worldenv.evaluation.pictures import psnr, ssim
from worldenv.nn.instruction import tokenize
from worldenv.policy.small import Policy, laplace_sample
from worldenv.records.intervals import wilson_interval
from worldenv.reflector.small import Reflector
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Starts
from worldenv.suites.record import Record, tabletop_trajectory
from worldenv.suites.tabletop.physics import HORIZON, Tabletop
from worldenv.suites.tabletop.scenes import Task

RULES = ("oracle", "own_stop", "no_stop")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation in the true environment on held-out start states."""

    episodes: int = 500  # true episodes, spread evenly over the tasks
    imagined: int = 200  # imagined episodes of the same policy from the same starts
    quality: int = 64  # true episodes replayed in imagination for PSNR and SSIM
    videos: int = 4
    weights: Path | None = None  # folder with any of the files in perceptual.py: LPIPS, FID, FVD too

    def __post_init__(self) -> None:
        if self.weights is not None:
            present(self.weights)
        if self.episodes < 10 or self.imagined < 1 or self.quality < 1 or self.videos < 0:
            raise UserError(
                "--eval.episodes must be at least 10, --eval.imagined and --eval.quality at least 1, "
                "--eval.videos not negative"
            )


@torch.no_grad()
def act_in_true(
    policy: Policy,
    tasks: Sequence[Task],
    starts: Sequence[int],
    split: str,
    perturb: float | torch.Tensor = 0.0,
    seed: int = 0,
    image_size: int = 64,
) -> list[Trajectory]:
    """One true episode per (task, start) up to the horizon.

    `perturb` scales the Laplace noise, of all episodes or of each ([E]); 0 = the mean action.
    """
    perturb = torch.as_tensor(perturb).view(-1, 1, 1)
    env = Tabletop(image_size)
    env.reset(tasks, starts, split)
    tokens = tokenize(env.instructions)
    generator = torch.Generator().manual_seed(seed)
    record = Record(env)
    for step in range(HORIZON):
        k = step % policy.config.chunk
        if k == 0:
            mu, beta = _in_batches(policy, record.frames[-1], record.proprio[-1], tokens)
            noise = laplace_sample(torch.zeros_like(mu), beta, torch.rand(mu.shape, generator=generator))
            mu = mu + perturb * noise
            chunk = mu.clamp(-1, 1).numpy()
        record.step(chunk[:, k])
    stack = record.stacked()
    return [
        tabletop_trajectory(*(part[i] for part in stack), env.instructions[i], task.name, int(start), split, "policy")
        for i, (task, start) in enumerate(zip(tasks, starts, strict=True))
    ]


def _in_batches(
    policy: Policy, frames: np.ndarray, proprio: np.ndarray, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    given, device = (torch.from_numpy(frames), torch.from_numpy(proprio), tokens), _device(policy)
    parts = [policy(*(part[i : i + 128].to(device) for part in given)) for i in range(0, len(frames), 128)]
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def judge_trajectories(reflector: Reflector, trajectories: Sequence[Trajectory], batch: int = 64) -> np.ndarray:
    """The reward after every step, float32 [N, T]; the trajectories must have one length."""
    out = []
    for i in range(0, len(trajectories), batch):
        part = trajectories[i : i + batch]
        frames = torch.from_numpy(np.stack([t.frames[:, 0] for t in part]))
        out.append(_judge(reflector, frames, tokenize([t.instruction for t in part])).numpy())
    return np.concatenate(out)


@torch.no_grad()
def _judge(reflector: Reflector, frames: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The reward [N, T] after every frame [N, T + 1, H, W, 3] but the first, on the CPU."""
    frames, tokens = frames.to(_device(reflector)), tokens.to(_device(reflector))
    pooled = reflector.begin(frames[:, 0], tokens)
    return torch.cat([reflector.judge(part, pooled) for part in frames[:, 1:].split(8, 1)], dim=1).cpu()


@dataclass(frozen=True)
class Outcome:
    """How each true episode ended under each stopping rule."""

    success: dict[str, np.ndarray]  # rule -> [N] bool
    stop: np.ndarray  # [N] int, steps until the reflector's stop, HORIZON if none
    stopped: np.ndarray  # [N] bool
    reward: np.ndarray  # [N, T] float32
    tasks: tuple[str, ...]  # [N]

    @property
    def false_stop(self) -> float:
        """Share of all episodes that the reflector stopped in a state that was no success."""
        return float((self.stopped & ~self.success["own_stop"]).mean())

    @property
    def missed_stop(self) -> float:
        """Share of the episodes that did succeed at some time which the reflector never stopped."""
        return float((~self.stopped & self.success["oracle"]).sum() / max(1, self.success["oracle"].sum()))

    def document(self, instruction_of: dict[str, str]) -> dict:
        """The JSON of result.json: success by rule with Wilson 95 % intervals, overall and per task."""
        n = len(self.tasks)
        out: dict = {rule: float(self.success[rule].mean()) for rule in RULES}
        out["n"] = n
        out["intervals"] = {rule: list(wilson_interval(int(self.success[rule].sum()), n)) for rule in RULES}
        out["per_task"] = {}
        for task in sorted(set(self.tasks)):
            rows = np.array([name == task for name in self.tasks])
            part = {rule: float(self.success[rule][rows].mean()) for rule in RULES}
            low_high = {
                rule: list(wilson_interval(int(self.success[rule][rows].sum()), int(rows.sum()))) for rule in RULES
            }
            out["per_task"][task] = {
                **part,
                "n": int(rows.sum()),
                "intervals": low_high,
                "instruction": instruction_of.get(task, ""),
            }
        return out


def judge_outcome(trajectories: Sequence[Trajectory], reward: np.ndarray, threshold: float) -> Outcome:
    """Apply the three stopping rules to episodes that were recorded to the horizon.

    oracle: success at any step ends the episode. own_stop: the state at the first R > threshold counts (at the horizon
    if there is none). no_stop: the state at the horizon counts.
    """
    success = np.stack([t.success for t in trajectories])
    over = reward > threshold
    stopped = over.any(1)
    step = np.where(stopped, over.argmax(1), success.shape[1] - 1)
    rules = {"oracle": success.any(1), "own_stop": success[np.arange(len(success)), step], "no_stop": success[:, -1]}
    return Outcome(rules, step + 1, stopped, reward, tuple(t.task for t in trajectories))


def starts_of(tasks: Sequence[Task], starts: Sequence[int], split: str, image_size: int = 64) -> Starts:
    """What the camera sees before anything has moved: all that imagination needs of the true environment."""
    env = Tabletop(image_size)
    env.reset(tasks, starts, split)
    return Starts(torch.from_numpy(env.frames()), torch.from_numpy(env.proprio()), tokenize(env.instructions))


def simulator_quality(
    engine: Engine, trajectories: Sequence[Trajectory], success: np.ndarray, seed: int, weights: Path | None = None
) -> dict:
    """Whole true episodes replayed in imagination along the true poses, without a look at the true frames on the way.

    Returns PSNR (dB) and SSIM by chunk index (mean over episodes and the chunk's frames), and `agreement`: the share of
    episodes whose imagined frames make the reflector say the same as was true, done at some time or never. With
    `weights`, also what `perceptual_quality` finds there.
    """
    frames = torch.from_numpy(np.stack([t.frames[:, 0] for t in trajectories]))
    poses = torch.from_numpy(np.stack([t.proprio for t in trajectories]))
    tokens = tokenize([t.instruction for t in trajectories])
    device = engine.world.device
    imagined = engine.world.replay(frames[:, 0].to(device), poses.to(device), seed).cpu()
    k, out = engine.world.chunk, {"psnr": [], "ssim": []}
    for first in range(1, imagined.shape[1] - k + 1, k):
        pair = (imagined[:, first : first + k].flatten(0, 1), frames[:, first : first + k].flatten(0, 1))
        out["psnr"].append(psnr(*pair).mean().item())
        out["ssim"].append(ssim(*pair).mean().item())
    reward = _judge(engine.reflector, imagined, tokens)
    said = (reward > engine.reflector.config.threshold).any(1).numpy()
    out["agreement"] = float((said == success).mean())
    out["episodes"] = len(trajectories)
    return out | (perceptual_quality(weights, imagined, frames, k) if weights else {})
