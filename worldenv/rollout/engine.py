"""Imagine many episodes at once: policy, world model and reflector, one chunk at a time."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.fields import COUNT, check_fields
from worldenv.interfaces.observation import Key, Starts
from worldenv.interfaces.policy import Decision, Policy
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.world import WorldModel
from worldenv.rollout.aside import in_host_memory
from worldenv.rollout.checks import check_config, check_decision, check_kind, check_members, check_rewards, check_run
from worldenv.rollout.decide import check_views, decide
from worldenv.rollout.episodes import Episodes, Rollouts, Step
from worldenv.rollout.memory import Failure, free_bytes, out_of_memory_says, ran_out, return_freed_memory
from worldenv.rollout.parallel import CPU, sent
from worldenv.rollout.runner import Runner

MEMORY_SHARE = 0.5  # of what is free, for the slots; the rest is for activations
RECORDS_SHARE = 0.8  # of what is free, for the records at most; the rest is for slots and activations
GiveUp = Callable[[Episodes, Step], Tensor]  # B episodes as they were before a chunk, and the chunk -> [B] bool
FEWER = "take fewer starts or siblings, or run the starts in parts: first_episode is the number of episodes already run"


@dataclass(frozen=True)
class EngineConfig:
    """How many episodes the engine holds and computes at a time."""

    horizon: int | None = None  # actions per episode; those of the last chunk beyond it do not count; None: the suite's
    capacity: int | None = None  # E, slots; None: one for each episode, as far as free memory allows
    batch: int | None = None  # episodes per network pass; None: what fits a CPU's cache or a GPU's memory
    graphs: bool = True  # on a GPU: record a chunk as a CUDA graph and replay it

    def __post_init__(self) -> None:
        check_fields(self, horizon=COUNT, capacity=COUNT, batch=COUNT)


@dataclass
class _Run:
    """One call of `run`: its arguments, its results so far, and the episodes that wait."""

    siblings: int
    out: Rollouts
    seed: int
    first_episode: int
    explore: bool
    stop: bool
    waiting: Tensor  # [W] int64, rows of episodes that have not begun; on the host, like
    finished: Tensor  # [N * G] bool
    give_up: GiveUp | None


class Engine:
    """`run` imagines G siblings of every start until the reflector stops them or the horizon is reached.

    When an episode ends, the next one takes its slot at once. Random numbers are counter-based, so an episode does not
    depend on its slot, the other episodes or the number of threads: exactly in 8 bits, up to rounding in floats.
    It computes in the models' own precision, without gradients, whatever autocast or grad mode the caller is in, and
    puts networks that are in training mode into evaluation mode.
    Weights that the caller changes act from the next `run` on; other models need another engine. One run at a time:
    another thread needs its own engine.
    """

    def __init__(self, policy: Policy, world: WorldModel, reflector: Reflector, config: EngineConfig):
        for role, part, interface in (
            ("policy", policy, Policy),
            ("world", world, WorldModel),
            ("reflector", reflector, Reflector),
        ):
            check_members(role, part, interface)
        check_config(config, EngineConfig)
        if config.horizon is None:
            raise UserError("the engine needs a horizon: EngineConfig(horizon=...), in actions")
        check_views(policy, world.views, "the world model")
        self._policy, self.config = policy, config
        self.chunk, self.capacity = policy.chunk, config.capacity  # K
        given = partial(_decided, policy, world)  # no method: a cycle would keep the slots
        self.runner = Runner(world, reflector, given, self.chunk, config.batch, config.graphs, policy=policy)
        self.horizon = -(-config.horizon // self.chunk)  # T, in chunks
        self.rows = torch.zeros(0, dtype=torch.long, device=CPU)  # [E], episodes.row on the host
        self.ended = False

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def world(self) -> WorldModel:
        return self.runner.world

    @property
    def reflector(self) -> Reflector:
        return self.runner.reflector

    def run(
        self,
        starts: Starts,
        siblings: int,  # G
        seed: int,
        first_episode: int = 0,  # id of the first episode: distinct ids give distinct randomness
        explore: bool = True,  # False: the mean action
        stop: bool = True,  # False: go on to the horizon whatever the reflector says
        video: bool = False,
        give_up: GiveUp | None = None,  # which episodes end after this chunk, although nothing stopped them
    ) -> Rollouts:
        """The finished rollouts, siblings of one start next to each other.

        Raises UserError for starts that do not fit the world model, for decisions of a wrong shape, for records that
        do not fit the memory, and in a second thread. When memory runs out, it goes on with half as many slots.
        """
        flags = {"explore": explore, "stop": stop, "video": video}
        siblings, seed, first_episode = check_run(starts, siblings, seed, first_episode, **flags)
        with out_of_memory_says(FEWER), self.runner.alone():
            self.runner.open(starts, self.policy.read)
            out = self._make_room(starts, siblings, video)
            waiting = torch.arange(len(out), device=CPU)
            finished = torch.zeros_like(waiting, dtype=torch.bool)
            self._finish(_Run(siblings, out, seed, first_episode, explore, stop, waiting, finished, give_up))
            check_rewards(out.reward)
            if video:
                out.video[:, 0] = starts.seen.frames.repeat_interleave(siblings, 0)
                out.proprio[:, 0] = starts.seen.proprio.repeat_interleave(siblings, 0)
        return out

    def end(self) -> None:
        """Called by another thread: any `run`, also one under way, raises CancelledError before its next chunk."""
        self.ended = True

    def with_policy(self, policy: Policy) -> "Engine":
        """An engine of the same models and settings with another policy; the slots of this one are freed."""
        self.runner.give_up_slots()
        return Engine(policy, self.world, self.reflector, self.config)

    def bytes_per_episode(self, starts: Starts, video: bool = False) -> tuple[int, int]:
        """Bytes of a slot and of an episode's records, for episodes that begin like these."""
        check_kind(starts)
        with self.runner.alone():
            self.runner.open(starts, self.policy.read)
            slot, record = self._samples()
            return slot.bytes_each(), self._bytes_kept(starts, video, record)

    def check_memory(self, starts: Starts, siblings: int, video: bool = False) -> None:
        """Raise UserError, with the figures, if the records of such a `run` do not fit the memory that is free."""
        siblings, *_ = check_run(starts, siblings, 0, 0, video=video)
        _, each = self.bytes_per_episode(starts, video)
        _check_records(len(starts) * siblings, each, free_bytes(starts.device))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, world model and reflector are in host memory and there are no slots: the device is the learner's.

        The next `run` gives what it would have given without this; it records its CUDA graphs again.
        """
        device = self.world.device
        self.runner.give_up_slots()
        with in_host_memory((self.world, self.reflector), self.policy, device):
            yield

    def _samples(self) -> tuple[Episodes, Slots | None]:
        """One slot, and what the policy records of a decision, which only a decision shows."""
        row = torch.zeros(1, dtype=torch.long, device=self.runner.starts.device)
        slot = self.runner.begin(row, row)
        decision = self.runner.decide(slot, self.runner.read[0], Key(0, row, row), True)
        check_decision(decision, slot.seen)
        return slot, decision.record

    def _records(self, starts: Starts, siblings: int, video: bool, record: Slots | None) -> Rollouts:
        actions = self.world.robot.action_size
        return Rollouts.empty(starts, self.horizon, self.chunk, actions, record, siblings, video, self.config.horizon)

    def _bytes_kept(self, starts: Starts, video: bool, record: Slots | None) -> int:
        """Bytes of an episode's records."""
        row = torch.zeros(1, dtype=torch.long, device=starts.device)
        one = starts.pick(row).to("meta")  # no memory: the frames of a single long episode may not fit
        return self._records(one, 1, video, record and record.each(lambda tensor: tensor.to("meta"))).bytes_each()

    def _make_room(self, starts: Starts, siblings: int, video: bool) -> Rollouts:
        """The records of every episode, and how many slots there is memory for beside them.

        Raises UserError, before anything is imagined, where the records do not fit.
        """
        slot, record = self._samples()
        kept = self._bytes_kept(starts, video, record)
        episodes, free = len(starts) * siblings, free_bytes(starts.device)
        _check_records(episodes, kept, free)
        left, each = free - episodes * kept, slot.bytes_each()
        fitting = max(1, int(MEMORY_SHARE * left / each))
        if self.capacity is None:
            self.capacity = fitting
        elif self.runner.episodes is None and min(self.capacity, episodes) * each > left:
            warnings.warn(
                f"{self.capacity} slots of {each:,} bytes do not fit the {left / 1e9:.2f} GB that are free beside the "
                f"records; continuing with {fitting}",
                stacklevel=3,
            )
            self.capacity = fitting
        return self._records(starts, siblings, video, record)

    def _finish(self, run: _Run) -> None:
        """Imagine all episodes of a run; with half the slots where memory runs out."""
        over = self._all_over(run)
        while len(over):
            if self.ended:
                raise CancelledError
            slots = max(len(over), 0 if self.runner.episodes is None else len(self.runner.episodes))
            try:
                over = self._advance(over, run)
                continue
            except Failure as error:
                if not ran_out(error):
                    raise
                if slots == 1:
                    raise UserError(f"out of memory with a single slot: free some memory, or {FEWER}") from error
            over = self._halve(run, slots)  # outside of `except`: the memory of the failed step is free

    def _all_over(self, run: _Run) -> Tensor:  # [E] bool
        return torch.ones(min(self.capacity, len(run.waiting)), dtype=torch.bool, device=CPU)

    def _halve(self, run: _Run, slots: int) -> Tensor:  # [E] bool, all over
        """After memory ran out: begin the unfinished episodes again in half as many slots. They come out the same."""
        episodes = self.runner.episodes
        size = "" if episodes is None else f" of {episodes.bytes_each() / 2**20:.2f} MiB"
        warnings.warn(f"out of memory with {slots} slots{size}; continuing with {slots // 2}", stacklevel=4)
        self.runner.give_up_slots()
        return_freed_memory()
        self.capacity = slots // 2
        run.waiting = (~run.finished).nonzero()[:, 0]
        run.out.forget(run.waiting, self.config.horizon)
        return self._all_over(run)

    def _advance(self, over: Tensor, run: _Run) -> Tensor:
        """Recycle the slots of ended episodes, then advance every resident one by a chunk; returns which ended."""
        live = self._recycle(over, run)
        if not live:
            return over[:0]

        def consume(slots: slice, before: Episodes, step: Step) -> Tensor:  # [B] bool, which are over
            self._end_at_the_horizon(before, step)
            run.out.note(before, step)
            ends = step.stop.any(1) & run.stop
            if run.give_up is not None:
                ends |= run.give_up(before, step)
            camera = None if step.camera is None else step.camera[:, -1]
            before.move_on(step.frames[:, -1], step.proprio[:, -1], camera)
            return (before.chunk == self.horizon) | ~step.finite | ends

        over = torch.cat(self.runner.advance(live, run.seed, run.explore, consume))
        over = over.cpu()  # the only time in a chunk that the host waits for the device
        run.finished[self.rows[:live][over]] = True
        return over

    def _end_at_the_horizon(self, before: Episodes, step: Step) -> None:
        """What lies beyond the last action of the horizon, within the last chunk, is no stop."""
        if self.config.horizon % self.chunk:
            taken = before.chunk[:, None] * self.chunk + torch.arange(self.chunk, device=before.chunk.device)
            step.stop &= taken < self.config.horizon

    def _recycle(self, over: Tensor, run: _Run) -> int:
        """Begin waiting episodes in the slots of ended ones. If none waits, move the last episodes into the gaps.

        Returns the number of slots in use; these are the first ones.
        """
        free, runner = over.nonzero()[:, 0], self.runner
        rows, run.waiting = run.waiting[: len(free)], run.waiting[len(free) :]
        begun = rows // run.siblings, rows + run.first_episode
        if runner.episodes is None or len(runner.episodes) < len(over):
            self.rows = torch.zeros(len(over), dtype=torch.long, device=CPU)  # before what may fail: as many as slots
            runner.make_slots(len(over), *begun, run.seed, run.explore)
        runner.fill(free[: len(rows)], *begun, rows)
        self.rows[free[: len(rows)]] = rows
        gaps, live = free[len(rows) :], len(over) - len(free) + len(rows)
        last = torch.arange(live, len(over), device=CPU)
        source, target = last[~torch.isin(last, gaps)], gaps[gaps < live]
        if len(source):
            device = runner.starts.device
            runner.episodes.move(sent(source, device), sent(target, device))
            self.rows[target] = self.rows[source]
        return live


def _check_records(episodes: int, each: int, free: int) -> None:
    """Raise UserError unless the records of all episodes take at most their share of the free memory."""
    if episodes * each > RECORDS_SHARE * free:
        raise UserError(
            f"the records of {episodes:,} episodes of {each:,} bytes take {episodes * each / 1e9:.2f} GB; "
            f"{free / 1e9:.2f} GB are free, and at most {100 * RECORDS_SHARE:.0f} % of that may go there: {FEWER}"
        )


def _decided(policy: Policy, world: WorldModel, live: Episodes, read: object, key: Key, explore: bool) -> Decision:
    return decide(policy, world.views, world.robot.action_size, live.seen, read, key, explore)
