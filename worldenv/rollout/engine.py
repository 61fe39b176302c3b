"""Imagine many episodes at once: policy, kinematics, world simulator and reflector, one chunk at a time."""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.int8 import is_fast
from worldenv.kinematics import Kinematics, chunk_kinematics
from worldenv.memory import free_bytes, ran_out
from worldenv.ops.philox import Use, philox
from worldenv.parallel import CACHED, in_parts
from worldenv.policy.network import Policy, laplace_log_prob, laplace_sample
from worldenv.reflector.network import Reflector
from worldenv.rollout.episodes import Episodes, Rollouts, Starts
from worldenv.simulator.world import World

MEMORY_SHARE = 0.5  # of what is free, for the slots; the rest is for activations


@dataclass(frozen=True)
class EngineConfig:
    horizon: int = 10  # T, chunks per episode
    capacity: int | None = None  # E, episodes resident at a time; None: as many as wait and free memory has room for
    batch: int = CACHED  # episodes per network pass
    precision: Literal["auto", "float32", "int8"] = "auto"  # of the networks; auto: int8 where the CPU is made for it

    def __post_init__(self) -> None:
        if min(self.horizon, self.batch, self.capacity or 1) < 1 or self.capacity == 0:
            raise UserError(f"horizon, capacity and batch must be positive: {self}")
        if self.precision == "int8" and not is_fast():
            raise UserError("this CPU has no instructions for --engine.precision int8; take auto or float32")


@dataclass
class _Run:
    """One call of `run`: what is asked for, what is there, and what still waits."""

    starts: Starts
    out: Rollouts
    seed: int
    first_episode: int
    explore: bool
    stop: bool
    waiting: Tensor  # [W] int64, rows of episodes that have not begun
    finished: Tensor  # [N * G] bool


class Engine:
    """`run` imagines G siblings of every start until the reflector stops them or the horizon is reached.

    An episode that ends leaves its slot to the next one at once. Randomness is counter-based, so an episode does not
    depend on its slot, on the others or on the number of threads, up to rounding.
    """

    def __init__(
        self, policy: Policy, world: World, reflector: Reflector, kinematics: Kinematics, config: EngineConfig
    ):
        if policy.config.chunk != world.chunk:
            raise UserError(f"policy acts in chunks of {policy.config.chunk}, the simulator in chunks of {world.chunk}")
        self.policy, self.world, self.reflector = policy, world, reflector
        self.kinematics, self.config = kinematics, config
        self.capacity = config.capacity
        self.episodes: Episodes | None = None  # the slots, once there are any

    @torch.no_grad()
    def run(
        self,
        starts: Starts,
        siblings: int,  # G
        seed: int,
        first_episode: int = 0,  # id of the first episode: distinct ids give distinct randomness
        explore: bool = True,  # False: the mean action
        stop: bool = True,  # False: go on to the horizon whatever the reflector says
        video: bool = False,
    ) -> Rollouts:
        """The finished rollouts, siblings of one start next to each other."""
        if starts.frame.shape[1:] != (self.world.size, self.world.size, 3):
            raise UserError(
                f"the starts have frames of {list(starts.frame.shape[1:])}; the simulator imagines "
                f"[{self.world.size}, {self.world.size}, 3]"
            )
        starts = starts.pick(torch.arange(len(starts)).repeat_interleave(siblings))
        out = Rollouts.empty(starts, self.config.horizon, self.policy.config.chunk, video)
        waiting, finished = torch.arange(len(starts)), torch.zeros(len(starts), dtype=torch.bool)
        run = _Run(starts, out, seed, first_episode, explore, stop, waiting, finished)
        over = self._room(run)
        while len(over):
            try:
                over = self._advance(over, run)
            except RuntimeError as error:
                if not ran_out(error) or len(over) == 1:
                    raise
                over = self._halve(run, len(over))
        if video:
            out.video[:, 0] = starts.frame
        return out

    def bytes_per_episode(self, starts: Starts) -> tuple[int, int]:
        """Bytes of a slot and of an episode's records, for episodes that begin like these."""
        one = starts.pick(torch.zeros(1, dtype=torch.long))
        row, out = torch.zeros(1, dtype=torch.long), Rollouts.empty(one, self.config.horizon, self.world.chunk, False)
        return self._begin(row, one, 0).bytes_each(), out.bytes_each()

    def _room(self, run: _Run) -> Tensor:  # [E] bool, all over
        """Decide how many slots there are to be."""
        if self.capacity is None:
            free = MEMORY_SHARE * free_bytes(run.starts.frame.device)
            self.capacity = max(1, int(free / self.bytes_per_episode(run.starts)[0]))
        return torch.ones(min(self.capacity, len(run.waiting)), dtype=torch.bool)

    def _halve(self, run: _Run, resident: int) -> Tensor:  # [E] bool, all over
        """Memory ran out: begin the unfinished episodes again, with half as many slots. They will be the same."""
        slots, _ = self.bytes_per_episode(run.starts)
        warnings.warn(
            f"out of memory with {resident} resident episodes of {slots / 2**20:.2f} MiB; going on with "
            f"{resident // 2}",
            stacklevel=3,
        )
        self.capacity, self.episodes = resident // 2, None
        run.waiting = (~run.finished).nonzero()[:, 0]
        run.out.forget(run.waiting)
        return self._room(run)

    def _advance(self, over: Tensor, run: _Run) -> Tensor:
        """Recycle the slots that are over, then move every resident episode on by a chunk; returns which are over."""
        live = self._recycle(over, run)
        if not live:
            return over[:0]
        over = torch.cat(in_parts(partial(self.step, run=run), live, self.config.batch))
        run.finished[self.episodes.row[:live][over]] = True
        return over

    def _recycle(self, over: Tensor, run: _Run) -> int:
        """Give the slots of the episodes that are over to the next that wait; when none waits, close the gaps.

        Returns how many slots are in use, from the first on.
        """
        free = over.nonzero()[:, 0]
        rows, run.waiting = run.waiting[: len(free)], run.waiting[len(free) :]
        if len(rows):
            parts = in_parts(
                lambda part: self._begin(rows[part], run.starts, run.first_episode), len(rows), self.config.batch
            )
            if self.episodes is None or len(self.episodes) < len(over):
                self.episodes = parts[0].empty(len(over))
            for slots, part in zip(free[: len(rows)].split(list(map(len, parts))), parts, strict=True):
                self.episodes.put(slots, part)
        gaps, live = free[len(rows) :], len(over) - len(free) + len(rows)
        last = torch.arange(live, len(over))
        self.episodes.move(last[~torch.isin(last, gaps)], gaps[gaps < live])
        return live

    @torch.no_grad()
    def _begin(self, rows: Tensor, starts: Starts, first_episode: int) -> Episodes:
        new = starts.pick(rows)
        pooled, memory = self.reflector.begin(new.frame, new.tokens), self.world.begin(new.frame, new.proprio)
        instruction, chunk = self.policy.read(new.tokens), torch.zeros_like(rows)
        return Episodes(rows, rows + first_episode, chunk, new.frame, new.proprio, instruction, memory, pooled)

    @torch.no_grad()
    def step(self, slots: slice, run: _Run) -> Tensor:  # [B] bool
        """Advance the episodes of some slots by one chunk and record it; returns which are over."""
        live = self.episodes[slots]
        mu, beta = self.policy(live.frame, live.proprio, live.instruction)
        action = mu
        if run.explore:
            uniform = philox(run.seed, live.id, live.chunk, Use.ACTION, mu.shape[1:])
            action = laplace_sample(mu, beta, uniform)
        poses = torch.cat([live.proprio[:, None], chunk_kinematics(live.proprio, action, self.kinematics)], dim=1)
        frames, drawn = self.world.imagine(live.memory, live.frame, poses, run.seed, live.id, live.chunk)
        reward = self.reflector.judge(frames, live.pooled)
        finite = torch.isfinite(action).all(2).all(1) & torch.isfinite(reward).all(1) & drawn
        done = (reward > self.reflector.config.threshold) & finite[:, None]  # a broken episode is no success

        run.out.record(live, action, laplace_log_prob(action, mu, beta), frames, reward, done, finite)
        live.frame.copy_(frames[:, -1])
        live.proprio.copy_(poses[:, -1])
        live.chunk.add_(1)
        return (live.chunk == self.config.horizon) | ~finite | (done.any(1) & run.stop)
