"""Imagine many episodes at once: policy, kinematics, world simulator and reflector, one chunk at a time."""

import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.ops.laplace_chunk import laplace_chunk
from worldenv.reflector.small import Reflector
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.episodes import Episodes, Rollouts, Starts
from worldenv.rollout.graphs import Graphs
from worldenv.rollout.memory import fitting, free_bytes, ran_out
from worldenv.rollout.parallel import CPU, in_parts, sent
from worldenv.rollout.runner import Imagined, advance, begin, check_seed, check_starts
from worldenv.worlds.composer.world import World

MEMORY_SHARE = 0.5  # of what is free, for the slots; the rest is for activations
PROBED = 8  # episodes that tell what a network pass takes of a GPU's memory
BEGUN_AT_ONCE = 256  # on a GPU: their memory is made beside the slots and then put there


@dataclass(frozen=True)
class EngineConfig:
    horizon: int = 10  # T, chunks per episode
    capacity: int | None = None  # E, episodes resident at a time; None: as many as wait and free memory has room for
    batch: int | None = None  # episodes per network pass; None: what a CPU's cache holds, what a GPU has room for
    graphs: bool = True  # on a GPU: replay what was recorded instead of launching every kernel

    def __post_init__(self) -> None:
        if min(n for n in (self.horizon, self.capacity, self.batch) if n is not None) < 1:
            raise UserError(f"horizon, capacity and batch must be positive: {self}")


@dataclass
class _Given:
    """Starts with what the models read of their instructions; `siblings` episodes begin at each."""

    starts: Starts
    instruction: Tensor  # [N, ...], as the policy reads it
    judged: Tensor  # [N, C], as the reflector has read it
    siblings: int  # G


@dataclass
class _Run:
    """One call of `run`: what is asked for, what is there, and what still waits."""

    given: "_Given"
    out: Rollouts
    seed: int
    first_episode: int
    explore: bool
    stop: bool
    waiting: Tensor  # [W] int64, rows of episodes that have not begun; on the host, as is
    finished: Tensor  # [N * G] bool


@dataclass
class Thought(Slots):
    """What the models make of one chunk of B episodes."""

    action: Tensor  # [B, k, 7] float32
    log_prob: Tensor  # [B] float32
    feature: Tensor | None  # [B, D] float32, what the policy saw in the frame
    led_to: Imagined


class Engine:
    """`run` imagines G siblings of every start until the reflector stops them or the horizon is reached.

    An episode that ends leaves its slot to the next one at once. Randomness is counter-based, so an episode does not
    depend on its slot, on the others or on the number of threads: in 8 bits not by a bit, in floats up to rounding.

    The policy is any module with policy(frame [B, H, W, 3] uint8, proprio [B, 7], instruction) -> mu, beta [B, k, 7] of
    a Laplace distribution, beta the logarithm of its scale. `instruction` are the tokens [B, L] int64; of a policy with
    a method `read` it is policy.read(tokens), a tensor [B, ...] that is made once per start. k is `chunk`, or else
    policy.config.chunk, or else the simulator's own, which costs least. A policy with methods `see` and `heads`, and an
    attribute `features`, the width of what `see` gives, is called as policy.heads(policy.see(frame, instruction),
    proprio), and what `see` gave is recorded, too.
    """

    def __init__(
        self,
        policy: nn.Module,
        world: World,
        reflector: Reflector,
        kinematics: Kinematics,
        config: EngineConfig,
        chunk: int | None = None,
    ):
        self.chunk = getattr(getattr(policy, "config", None), "chunk", world.chunk) if chunk is None else chunk
        if self.chunk < 1:
            raise UserError(f"chunk is {self.chunk}; an episode acts at least once in a chunk")
        self.policy, self.world, self.reflector = policy, world, reflector
        self.features = getattr(policy, "features", 0) if hasattr(policy, "see") and hasattr(policy, "heads") else 0
        self.kinematics, self.config = kinematics, config
        self.capacity = config.capacity
        self._give_up_slots()

    def _give_up_slots(self) -> None:
        self.episodes: Episodes | None = None  # the slots, once there are any
        self.rows = torch.zeros(0, dtype=torch.long, device=CPU)  # [E], what episodes.row says, on the host
        self.graphs = Graphs()  # of these slots: they write to their memory
        self.batch = self.config.batch

    @torch.inference_mode(False)  # slots that were made in that mode could not be written to outside of it
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
        """The finished rollouts, siblings of one start next to each other.

        Raises UserError for starts that the simulator cannot go on from and for a policy that returns something else.
        """
        check_starts(starts, self.world)
        check_seed(seed)
        if siblings < 1:
            raise UserError(f"siblings is {siblings}; every start needs at least one episode")
        out = Rollouts.empty(starts, self.config.horizon, self.chunk, video, self.features, siblings)
        waiting = torch.arange(len(out.chunks), device=CPU)
        given, finished = self._read(starts, siblings), torch.zeros_like(waiting, dtype=torch.bool)
        if self.episodes is not None and self.episodes.instruction.shape[1:] != given.instruction.shape[1:]:
            self._give_up_slots()  # they were made for instructions of another length
        run = _Run(given, out, seed, first_episode, explore, stop, waiting, finished)
        over = self._room(run)
        while len(over):
            slots = len(over) if self.episodes is None else len(self.episodes)
            try:
                over = self._advance(over, run)
                continue
            except RuntimeError as error:
                if not ran_out(error) or slots == 1:
                    raise
            over = self._halve(run, slots)  # out here, where nothing holds the memory of the step any more
        if video:
            out.video[:, 0] = starts.frame.repeat_interleave(siblings, 0)
        return out

    def bytes_per_episode(self, starts: Starts) -> tuple[int, int]:
        """Bytes of a slot and of an episode's records, for episodes that begin like these."""
        row = torch.zeros(1, dtype=torch.long, device=starts.frame.device)
        out = Rollouts.empty(starts.pick(row), self.config.horizon, self.chunk, False, self.features)
        return self._begin(row, self._read(starts, 1), 0).bytes_each(), out.bytes_each()

    @torch.no_grad()
    def _read(self, starts: Starts, siblings: int) -> _Given:
        tokens = starts.tokens
        instruction = self.policy.read(tokens) if hasattr(self.policy, "read") else tokens
        return _Given(starts, instruction, self.reflector.read(tokens), siblings)

    def _room(self, run: _Run) -> Tensor:  # [E] bool, all over
        """Decide how many slots there are to be."""
        starts = run.given.starts
        if self.capacity is None:
            free = MEMORY_SHARE * free_bytes(starts.frame.device)
            self.capacity = max(1, int(free / self.bytes_per_episode(starts)[0]))
        return torch.ones(min(self.capacity, len(run.waiting)), dtype=torch.bool, device=CPU)

    def _halve(self, run: _Run, slots: int) -> Tensor:  # [E] bool, all over
        """Memory ran out: begin the unfinished episodes again, with half as many slots. They will be the same."""
        size = "" if self.episodes is None else f" of {self.episodes.bytes_each() / 2**20:.2f} MiB"
        warnings.warn(f"out of memory with {slots} slots{size}; going on with {slots // 2}", stacklevel=3)
        self._give_up_slots()
        self.capacity = slots // 2
        run.waiting = (~run.finished).nonzero()[:, 0]
        run.out.forget(run.waiting)
        return self._room(run)

    def _advance(self, over: Tensor, run: _Run) -> Tensor:
        """Recycle the slots that are over, then move every resident episode on by a chunk; returns which are over."""
        live, device = self._recycle(over, run), run.given.starts.frame.device
        if not live:
            return over[:0]
        over = torch.cat(in_parts(partial(self.step, run=run), live, self.batch, device))
        over = over.cpu()  # the one time in a chunk that the host waits for the device
        run.finished[self.rows[:live][over]] = True
        return over

    def _recycle(self, over: Tensor, run: _Run) -> int:
        """Give the slots of the episodes that are over to the next that wait; when none waits, close the gaps.

        Returns how many slots are in use, from the first on.
        """
        free, device = over.nonzero()[:, 0], run.given.starts.frame.device
        rows, run.waiting = run.waiting[: len(free)], run.waiting[len(free) :]
        if self.episodes is None or len(self.episodes) < len(over):
            self._give_up_slots()
            first = self._begin(sent(rows[:PROBED], device), run.given, run.first_episode)
            self.episodes = first.empty(len(over))
            self.rows = torch.zeros(len(over), dtype=torch.long, device=CPU)
            self.batch = self.batch or fitting(lambda: self.think(first, run.seed, run.explore), len(first), device)

        def fill(part: slice) -> None:
            new = self._begin(sent(rows[part], device), run.given, run.first_episode)
            self.episodes.put(sent(free[: len(rows)][part], device), new)

        in_parts(fill, len(rows), self.batch and min(self.batch, BEGUN_AT_ONCE), device)
        self.rows[free[: len(rows)]] = rows
        gaps, live = free[len(rows) :], len(over) - len(free) + len(rows)
        last = torch.arange(live, len(over), device=CPU)
        source, target = last[~torch.isin(last, gaps)], gaps[gaps < live]
        if len(source):
            self.episodes.move(sent(source, device), sent(target, device))
            self.rows[target] = self.rows[source]
        return live

    @torch.no_grad()
    def _begin(self, rows: Tensor, given: _Given, first_episode: int) -> Episodes:
        start = rows // given.siblings
        read = [part.index_select(0, start) for part in (given.instruction, given.judged)]
        new, ids = given.starts.pick(start), rows + first_episode
        return begin(new, rows, ids, *read, self.chunk, self.world, self.reflector)

    @torch.no_grad()
    def step(self, slots: slice, run: _Run) -> Tensor:  # [B] bool
        """Advance the episodes of some slots by one chunk and record it; returns which are over."""
        live = self.episodes[slots]
        if self.config.graphs and live.row.is_cuda:
            part = self.episodes[slots.start : slots.start + (self.batch or len(self.episodes))]
            thought = self.graphs(self.think, part, len(live), run.seed, run.explore)
        else:
            thought = self.think(live, run.seed, run.explore)
        new = thought.led_to
        run.out.record(
            live, thought.action, thought.log_prob, thought.feature, new.frames, new.reward, new.over, new.finite
        )
        live.move_on(new.frames[:, -1], new.proprio[:, -1])
        return (live.chunk == self.config.horizon) | ~new.finite | (new.over.any(1) & run.stop)

    @torch.no_grad()
    def think(self, live: Episodes, seed: int, explore: bool) -> Thought:
        """Ask the policy and imagine what follows; only `memory`, `pooled` and `begun` of the episodes move on."""
        feature, mu, beta = self._ask(live)
        action, log_prob = laplace_chunk(mu, beta, seed, live.id, live.chunk, explore)
        led_to = advance(live, action, self.world, self.reflector, self.kinematics, seed)
        led_to.finite &= torch.isfinite(log_prob)
        led_to.over &= led_to.finite[:, None]
        return Thought(action, log_prob, feature, led_to)

    def _ask(self, live: Episodes) -> tuple[Tensor | None, Tensor, Tensor]:
        """The policy's features [B, D], if it has any, and its mu and beta, [B, K, 7] float32 each."""
        feature = self.policy.see(live.frame, live.instruction) if self.features else None
        if feature is None:
            given = self.policy(live.frame, live.proprio, live.instruction)
        else:
            given = self.policy.heads(feature, live.proprio)
        found = [
            list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            for x in (given if isinstance(given, tuple | list) else [given])
        ]
        wanted = [len(live), self.chunk, 7]
        if found != [wanted, wanted]:
            raise UserError(
                f"the policy returned {' and '.join(map(str, found))}; it should return mu and beta, both {wanted}: "
                "episodes, actions of a chunk, numbers of an action. Give the engine its `chunk` if that is another one"
            )
        return feature, given[0].float(), given[1].float()
