"""Slots of imagined episodes: begin episodes in them, advance them by a chunk, replay a chunk as a CUDA graph.

`Engine`, where a policy acts, and the environments of `worldenv.envs`, where the caller does, both use this runner.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Starts
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.reflector import Reflector
from worldenv.interfaces.world import WorldModel
from worldenv.rollout.checks import (
    Untouched,
    check_decision,
    check_finite,
    check_imagined,
    check_judged,
    check_rewards,
    check_starts,
    check_state,
)
from worldenv.rollout.episodes import Episodes, Step
from worldenv.rollout.graphs import Graphs
from worldenv.rollout.memory import FreedMemory, fitting
from worldenv.rollout.modes import own_modes
from worldenv.rollout.parallel import after_fork, in_parts, sent
from worldenv.rollout.weights import Weights

PROBED = 8  # episodes of a trial pass that measures how much GPU memory a pass needs
BEGUN_AT_ONCE = 256  # episodes, on a GPU: their memory is made first, and then copied into the slots
Result = TypeVar("Result")
Decide = Callable[[Episodes, Any, Key, bool], Decision]  # episodes, what the policy read from the texts, key, explore


class Runner:
    """E episodes, each in a slot. Random numbers are counter-based: an episode is the same in any slot or batch."""

    def __init__(
        self,
        world: WorldModel,
        reflector: Reflector,
        decide: Decide,
        chunk: int,  # K, actions per step
        batch: int | None = None,  # episodes per network pass; None: what fits a CPU's cache or a GPU's memory
        graphs: bool = True,  # on a GPU: record a chunk as a CUDA graph and replay it
        takes_actions: bool = False,  # the caller acts: every slot has room for its next chunk of actions
        policy: Any = None,  # whose weights `decide` uses
    ):
        if chunk < 1:
            raise UserError(f"chunk is {chunk}; a chunk has at least one action")
        self.world, self.reflector, self.decide, self.chunk = world, reflector, decide, chunk
        self.wanted_batch, self.replays, self.takes_actions = batch, graphs, takes_actions
        self.starts: Starts | None = None
        self.read: tuple[Any, Any] = (None, None)  # what the policy and the reflector read from the texts
        self.weights, self._turn = Weights(policy, world, reflector), threading.Lock()
        self.freed = FreedMemory()
        self.give_up_slots()

    def __getstate__(self) -> dict[str, Any]:
        """For copies, and for other processes: without the lock and the recorded graphs, which belong to this one."""
        return {name: value for name, value in vars(self).items() if name not in ("_turn", "graphs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn, self.graphs = threading.Lock(), Graphs()

    def give_up_slots(self) -> None:
        """Free the slots and the graphs that were recorded for them."""
        self.episodes: Episodes | None = None
        self.graphs = Graphs()
        self.batch = self.wanted_batch
        self.checked = False  # whether the models have been seen to return what they should

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Give the slots to the calling thread, and the models their own precision whatever modes of torch it is in.

        Weights that changed since the last call act from here on. Raises UserError if another call is not over.
        """
        if not self._turn.acquire(blocking=False):
            raise UserError(
                "this engine or environment is in use, by another thread or by the call that led here: make one for "
                "each thread; they may share the models"
            )
        try:
            after_fork()
            with own_modes(self.world.device):
                if self.weights.renew(self.world.device.type == "cuda"):
                    self.graphs = Graphs()  # recorded graphs read the old tensors
                yield
        finally:
            self._turn.release()

    @torch.no_grad()
    def open(self, starts: Starts, read: Callable[[tuple[str, ...]], Any] = lambda texts: None) -> None:
        """Set the starts at which episodes begin from now on; `read` is the policy's function of that name."""
        check_starts(starts, self.world)
        self.starts = starts
        new = read(starts.texts), self.reflector.read(starts.texts)
        if not _written_over(self.read, new):  # recorded graphs read the old tensors
            self.read = tree_map_only(Tensor, torch.clone, new)  # it may be part of a model, and is written over
            self.graphs = Graphs()
        row = torch.zeros(1, dtype=torch.int64, device=starts.device)
        if self.episodes is None:
            return
        if self.episodes.takes(self.begin(row, row)):
            self.episodes.seen.text.zero_()  # a graph reads idle slots too: their rows were of the old table
        else:
            self.give_up_slots()

    @torch.no_grad()
    def begin(self, starts: Tensor, ids: Tensor, rows: Tensor | None = None) -> Episodes:
        """New episodes at some rows of the starts; they are not in slots yet.

        `rows` are their values of `row`; None: the same as `starts`. All are [M] int64 on the device of the starts.
        """
        seen = self.starts.seen.each(lambda tensor: tensor.index_select(0, starts))
        given = None if self.checked else Untouched((list(seen.tensors()), self.read[1]))
        memory = self.world.begin(seen, self.chunk)
        if given is not None:
            check_state("the world model", memory, seen)
            given.check("the world model's `begin`")
        judged = self.reflector.begin(seen, self.read[1])
        if given is not None:
            check_state("the reflector", judged, seen)
            given.check("the reflector's `begin`")
        action = None
        if self.takes_actions:
            action = seen.proprio.new_zeros(len(starts), self.chunk, self.world.robot.action_size)
        rows = starts if rows is None else rows
        return Episodes(rows, ids, torch.zeros_like(rows), seen, memory, judged, action)

    def make_slots(self, count: int, starts: Tensor, ids: Tensor, seed: int, explore: bool) -> None:
        """Allocate `count` slots. The first few episodes are begun, and on a GPU advanced once, to find their size."""
        self.give_up_slots()
        device = self.starts.device
        few = self.begin(sent(starts[:PROBED], device), sent(ids[:PROBED], device))
        self.episodes = few.empty(count)
        self.batch = self.batch or fitting(lambda: self.think(few, seed, explore), len(few), device)

    def fill(self, slots: Tensor, starts: Tensor, ids: Tensor, rows: Tensor | None = None) -> None:
        """Begin episodes in some slots, as `begin` does; all are [M] int64 on the host."""
        device = self.starts.device
        given = (starts, ids) if rows is None else (starts, ids, rows)

        def work(part: slice) -> None:
            new = self.begin(*(sent(values[part], device) for values in given))
            self.episodes.put(sent(slots[part], device), new)

        in_parts(work, len(slots), self.batch and min(self.batch, BEGUN_AT_ONCE), device)

    def advance(
        self, count: int, seed: int, explore: bool, consume: Callable[[slice, Episodes, Step], Result]
    ) -> list[Result]:
        """Advance the first `count` slots by a chunk, in parts; returns the result of `consume` for each part.

        `consume` gets the slots, the episodes as they were before the chunk, and the step; it calls `move_on`.
        """

        @torch.no_grad()
        def work(slots: slice) -> Result:
            live = self.episodes[slots]
            if self.replays and live.row.is_cuda:
                part = self.episodes[slots.start : slots.start + (self.batch or len(self.episodes))]
                step = self.graphs(self.think, part, len(live), seed, explore)
            else:
                step = self.think(live, seed, explore)
            return consume(slots, live, step)

        results = in_parts(work, count, self.batch, self.starts.device)
        self.freed.check()
        return results

    @torch.no_grad()
    def think(self, live: Episodes, seed: int, explore: bool) -> Step:
        """Decide on a chunk, imagine what follows and judge it. Of the episodes, only `memory` and `judged` change."""
        key = Key(seed, live.id, live.chunk)
        if not self.checked:
            given = Untouched((live.id, live.chunk, *live.seen.tensors(), self.read[0]))
        decision = self.decide(live, self.read[0], key, explore)
        action = decision.action
        if not self.checked:
            check_decision(decision, live.seen)
            given.check("the policy's `act`")
            given = Untouched((live.id, live.chunk, action, *live.seen.tensors()), live.memory)
        imagined = self.world.imagine(live.memory, live.seen, action, key)
        check_imagined(imagined, self.world, live.seen, action.shape[1])
        if not self.checked:
            check_finite(imagined)
            given.check("the world model's `imagine`")
            given = Untouched((imagined.frames, *live.seen.tensors()), live.judged)
        judged = self.reflector.judge(imagined.frames, live.judged)
        check_judged(judged, *action.shape[:2], live.row.device)
        if not self.checked:
            check_rewards(judged[0])
            given.check("the reflector's `judge`")
            self.checked = True
        reward, stop = judged
        finite = torch.isfinite((0 * action).sum((1, 2)) + reward.sum(1))  # a sum is finite if all terms are
        doubt = torch.zeros_like(decision.log_prob) if imagined.doubt is None else imagined.doubt
        finite = finite & imagined.finite & torch.isfinite(decision.log_prob) & torch.isfinite(doubt)
        stop = stop & finite[:, None]  # an episode that is not finite never succeeds
        given = action, decision.log_prob, decision.record, imagined.frames, imagined.proprio
        return Step(*given, reward, stop, finite, doubt, imagined.camera, imagined.held)


def _written_over(old: Any, new: Any) -> bool:
    """Copy `new` into the tensors of `old` if structure, shapes and dtypes are equal; returns whether they are."""
    (mine, shape), (others, other_shape) = tree_flatten(old), tree_flatten(new)
    if shape != other_shape:
        return False
    pairs = [(a, b) for a, b in zip(mine, others, strict=True) if a is not None or b is not None]
    if not all(isinstance(value, Tensor) for pair in pairs for value in pair):
        return False
    if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in pairs):
        return False
    for a, b in pairs:
        a.copy_(b)
    return True
