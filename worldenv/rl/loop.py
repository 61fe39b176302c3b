"""LOOP: leave-one-out advantage + PPO, entirely inside the world model (World-Env, arXiv 2509.24948)."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.ops.ppo_loss import ppo_loss
from worldenv.policy.small import Policy
from worldenv.records.checkpoint import load_state, save_state
from worldenv.records.progress import Progress
from worldenv.records.run_folder import RunFolder
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Rollouts, Starts

STAGE = "post_train"


@dataclass(frozen=True)
class PostTrainConfig:
    iterations: int = 36
    starts: int = 24  # N, start states per iteration
    siblings: int = 8  # G, rollouts of one start (paper: N = 8)
    clip: float = 0.2  # eps (paper: 0.1)
    learning_rate: float = 4e-4  # the highest: it falls to a tenth, for an iteration's rollouts are few and noisy
    warmup: int = 4  # iterations over which the learning rate rises: the first steps of Adam are the most random
    epochs: int = 2  # passes over an iteration's chunks
    minibatch: int = 256  # chunks per step of the optimizer
    accumulate: int | None = None  # chunks per backward pass, whose gradients add up to a minibatch's; None: all
    signal: float = 0.25  # a group whose advantages are all smaller carries none: judged failures differ by chance
    max_skipped: int = 20  # updates with a non-finite loss or gradient before the run ends

    def __post_init__(self) -> None:
        counts = (self.iterations, self.starts, self.epochs, self.minibatch, self.accumulate)
        if min(count for count in counts if count is not None) < 1:
            raise UserError(f"iterations, starts, epochs, minibatch and accumulate must be positive: {self}")
        if self.siblings < 2:
            raise UserError(f"siblings is {self.siblings}; leave-one-out needs at least 2 rollouts of a start")
        if not 0 < self.clip < 1 or not 0 < self.learning_rate < math.inf:
            raise UserError(f"clip must lie in (0, 1) and learning_rate be positive and finite: {self}")
        if not 0 <= self.signal <= 1 or self.max_skipped < 0:
            raise UserError(f"signal must lie in [0, 1] and max_skipped not be negative: {self}")
        if self.warmup < 1:
            raise UserError(f"warmup is {self.warmup}; 1 is the least: the full learning rate from the start")

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration, counted from 0: up over `warmup`, and down to a tenth over all."""
        return self.learning_rate * min(1.0, (iteration + 1) / self.warmup) * (1 - 0.9 * iteration / self.iterations)


def leave_one_out(
    reward: Tensor,  # [N, G] float32
    sound: Tensor,  # [N, G] bool, the rollouts that count
) -> Tensor:  # [N, G] float32
    """A_n = R_n - mean of the other sound siblings' rewards; 0 where a rollout is not sound or has no such sibling."""
    others = sound.sum(1, keepdim=True) - 1
    total = torch.where(sound, reward, 0.0).sum(1, keepdim=True)
    return torch.where(sound & (others > 0), reward - (total - reward) / others.clamp(min=1), 0.0)


def group_advantage(
    rollouts: Rollouts, siblings: int, signal: float
) -> tuple[Tensor, int]:  # [E], groups without signal
    """The advantage of every episode. A group whose advantages are all smaller than `signal` gets 0."""
    sound = ~rollouts.broken.view(-1, siblings)
    reward = torch.where(sound, rollouts.final_reward().view(-1, siblings), 0.0)
    advantage = leave_one_out(reward, sound)
    flat = advantage.abs().amax(1) < signal
    return torch.where(flat[:, None], 0.0, advantage).flatten(), int(flat.sum())


class Learner:
    """The policy, its optimizer, and the counts that a run reports.

    The policy's encoder stays as it is, so what it made of a frame while imagining still holds: with few rollouts an
    update of everything is mostly noise (benchmarks/LOG.md, "Practise with a frozen encoder").
    """

    def __init__(self, policy: Policy, config: PostTrainConfig):
        self.policy, self.config = policy, config
        self.parameters = [p for name, p in policy.named_parameters() if not name.startswith("encoder.")]
        self.optimizer = torch.optim.Adam(self.parameters, config.learning_rate)
        self.skipped = 0

    def update(self, rollouts: Rollouts, advantage: Tensor, generator: torch.Generator) -> dict[str, float]:
        """`epochs` passes over every chunk whose episode has an advantage, in shuffled minibatches."""
        horizon = rollouts.log_prob.shape[1]
        device = advantage.device
        used = (torch.arange(horizon, device=device) < rollouts.chunks[:, None]) & (advantage != 0)[:, None]
        episode, chunk = used.nonzero(as_tuple=True)
        if not len(episode):
            return {"loss": 0.0, "clip_fraction": 0.0, "chunks": 0}
        losses, clipped = [], []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(episode), generator=generator).to(device)
            for part in order.split(self.config.minibatch):
                loss, share = self._step(rollouts, advantage, episode[part], chunk[part])
                losses.append(loss)
                clipped.append(share)
        count = len(losses)
        return {"loss": sum(losses) / count, "clip_fraction": sum(clipped) / count, "chunks": len(episode)}

    def _step(self, rollouts: Rollouts, advantage: Tensor, episode: Tensor, chunk: Tensor) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, share = advantage.new_zeros(2).unbind()
        at_once = self.config.accumulate or len(episode)
        for e, c in zip(episode.split(at_once), chunk.split(at_once), strict=True):
            mu, beta = self.policy.heads(rollouts.feature[e, c], rollouts.proprio[e, c])
            part, clipped = ppo_loss(
                mu, beta, rollouts.action[e, c], rollouts.log_prob[e, c], advantage[e], self.config.clip
            )
            weight = len(e) / len(episode)  # every chunk counts the same, in whichever part
            (weight * part).backward()
            loss, share = loss + weight * part.detach(), share + weight * clipped
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
            return loss.item(), share.item()
        self.skipped += 1
        if self.skipped > self.config.max_skipped:
            raise UserError(
                f"{self.skipped} policy updates had a non-finite loss or gradient; lower --post.learning-rate"
            )
        return 0.0, 0.0


def post_train(engine: Engine, starts: Starts, config: PostTrainConfig, folder: RunFolder, seed: int) -> dict[str, int]:
    """Improve `engine.policy` in imagination, in place; resumable after any iteration. Returns the run's counts."""
    if not engine.features:
        raise UserError("practising takes a policy with `see`, `heads` and `features`: see Engine")
    learner = Learner(engine.policy, config)
    path = folder.checkpoints / f"{STAGE}.state.safetensors"
    first, counts = 0, {"groups": 0, "groups_without_signal": 0, "broken_episodes": 0, "skipped_steps": 0}
    if path.exists():
        state = load_state(path)
        engine.policy.load_state_dict(state["policy"])
        learner.optimizer.load_state_dict(state["optimizer"])
        first, counts = state["iteration"], state["counts"]
        learner.skipped = counts["skipped_steps"]
    folder.truncate(STAGE, first)
    with Progress(config.iterations, "practising in imagination", done=first) as progress:
        for iteration in range(first, config.iterations):
            figures = _iterate(engine, learner, starts, iteration, seed, counts)
            folder.log(STAGE, iteration, **figures)
            save_state(
                path,
                policy=engine.policy.state_dict(),
                optimizer=learner.optimizer.state_dict(),
                iteration=iteration + 1,
                counts=counts,
            )
            progress.advance(reward=figures["reward"], success=f"{100 * figures['imagined_success']:.0f} %")
    return counts


def _iterate(
    engine: Engine, learner: Learner, starts: Starts, iteration: int, seed: int, counts: dict[str, int]
) -> dict[str, float]:
    config = learner.config
    generator = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
    began = time.monotonic()
    picked = torch.randint(len(starts), (config.starts,), generator=generator).to(starts.frame.device)
    first = iteration * config.starts * config.siblings
    rollouts = engine.run(starts.pick(picked), config.siblings, seed, first)
    sound = ~rollouts.broken
    if not sound.any():
        raise UserError(f"in iteration {iteration + 1} every imagined episode became non-finite: nothing can be learnt")
    advantage, flat = group_advantage(rollouts, config.siblings, config.signal)
    imagined = time.monotonic()
    for group in learner.optimizer.param_groups:
        group["lr"] = config.rate(iteration)
    figures = learner.update(rollouts, advantage, generator)
    counts["groups"] += config.starts
    counts["groups_without_signal"] += flat
    counts["broken_episodes"] += int(rollouts.broken.sum())
    counts["skipped_steps"] = learner.skipped
    return {
        "reward": rollouts.final_reward()[sound].mean().item(),
        "imagined_success": rollouts.stopped[sound].float().mean().item(),
        "steps_to_stop": rollouts.stop[sound].float().mean().item(),
        **figures,
        "groups_without_signal": flat,
        "broken_episodes": int(rollouts.broken.sum()),
        "skipped_steps": learner.skipped,
        "rollout_s": imagined - began,
        "update_s": time.monotonic() - imagined,
    }
