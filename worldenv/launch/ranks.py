"""The processes of one job, the ranks, and what they exchange. A process alone exchanges nothing."""

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from worldenv.errors import UserError
from worldenv.launch.watch import Watch

SEEN_S = 10.0  # until a file that rank 0 wrote is there on other machines


class Ranks:
    """Where this process stands among those of its job; all call the same methods in the same order.

    A rank that is lost ends this process within a minute, in any of these methods and outside of them.
    """

    def __init__(self, rank: int = 0, count: int = 1, watch: Watch | None = None):
        self.rank, self.count, self.watch = rank, count, watch
        self.asked = False  # to end, by SIGTERM

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the run folder."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's share of `count` things: consecutive, and no larger than another's by more than one."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def every(self, value: Any) -> list:
        """The values of all ranks, in their order. No rank returns before all have called."""
        out = [value] * self.count
        if self.count > 1:
            self._exchange(distributed.all_gather_object, out, value)
        return out

    def gather(self, *columns: Tensor) -> list[Tensor]:  # [e, ...] -> [E, ...]
        """The rows of all ranks, in their order, on the device of each column."""
        if self.count == 1:
            return list(columns)
        counts = self.every(len(columns[0]))
        return [self._whole(column, counts) for column in columns]

    def before(self, rows: int) -> int:
        """How many rows the ranks before this one have, where this one has `rows`."""
        return sum(self.every(rows)[: self.rank])

    def from_first(self, value: Any) -> Any:
        """The value of rank 0."""
        given = [value]
        if self.count > 1:
            self._exchange(distributed.broadcast_object_list, given, src=0)
        return given[0]

    def to_first(self, value: Any) -> list | None:
        """At rank 0 the values of all ranks, in their order; one is received after the other. Elsewhere None."""
        if not self.first:
            self._exchange(distributed.send_object_list, [value], dst=0)
            return None
        out = [value]
        for rank in range(1, self.count):
            given = [None]
            self._exchange(distributed.recv_object_list, given, src=rank)
            out += given
        return out

    def dealt(self, things: Sequence) -> Sequence:
        """This rank's share of what rank 0 has; what the others give is not looked at."""
        if self.first:
            for rank in range(1, self.count):
                given = things[Ranks(rank, self.count).part(len(things))]
                self._exchange(distributed.send_object_list, [given], dst=rank)
            return things[self.part(len(things))]
        found = [None]
        self._exchange(distributed.recv_object_list, found, src=0)
        return found[0]

    def add_gradients(
        self, parameters: Sequence[nn.Parameter], *figures: Tensor, sums: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, ...]:
        """Add the gradients, and the figures [], over all ranks. The gradients are replaced, the figures returned.

        Sums are computed in float32. With `sums`, a tensor or None for each parameter, these are added in place of the
        gradients, in float64, and rounded once to the dtype of the parameter.
        A parameter that has a gradient on no rank has none afterwards.
        """
        if self.count == 1 and sums is None:
            return figures
        if self.count == 1:
            order = torch.contiguous_format  # as among several ranks: sums over a gradient are rounded in this order
            for parameter, total in zip(parameters, sums, strict=True):
                if parameter.requires_grad:
                    parameter.grad = None if total is None else total.to(parameter.dtype, memory_format=order)
            return tuple(one.detach().double() for one in figures)
        given = [one.grad for one in parameters] if sums is None else sums
        both = [pair for pair in zip(parameters, given, strict=True) if pair[0].requires_grad]
        learnt = [parameter for parameter, _ in both]
        have = torch.tensor([grad is not None for _, grad in both], device=figures[0].device)
        grads = [torch.zeros_like(one) if grad is None else grad for one, grad in both]
        dtype = torch.float32 if sums is None else torch.float64
        flat = torch.cat([one.detach().flatten().to(dtype) for one in (*grads, have, *figures)])
        self._exchange(distributed.all_reduce, flat)
        *sums, counts, added = flat.split([*(one.numel() for one in learnt), len(learnt), len(figures)])
        for parameter, total, count in zip(learnt, sums, counts.tolist(), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype) if count else None
        return added.unbind()

    @contextmanager
    def after_first(self) -> Iterator[None]:
        """Rank 0 goes through the block first, then all others at once: they find what it has kept in files."""
        if not self.first:
            self.every(None)
        yield
        if self.first:
            self.every(None)

    def check_alike(self, what: dict[str, Any]) -> None:
        """Raise UserError, at all ranks, unless each was given the same."""
        for rank, other in enumerate(self.every(what)):
            if wrong := [name for name in what if other.get(name) != what[name]]:
                name = wrong[0]
                raise UserError(
                    f"rank {rank} has {name} {other.get(name)!r}, rank {self.rank} has {what[name]!r}; give all ranks "
                    "the same options"
                )

    def check_seen(self, folder: Path) -> None:
        """Raise UserError, at all ranks, unless all see this folder of rank 0."""
        if self.count == 1:
            return
        mark = folder / f".ranks.{self.from_first(secrets.token_hex(4))}.partial"
        if self.first:
            mark.touch()
        blind = self._blind_to(mark)
        if self.first:
            mark.unlink()
        if blind:
            raise UserError(
                f"the run folder {folder} is not shared: {', '.join(blind)} cannot see it; choose another --run, on a "
                "file system that all machines share"
            )

    def wait_for(self, path: Path) -> None:
        """Return once rank 0, which has made this file or folder, has called, and all ranks see it.

        Raises UserError, at all ranks, if one does not.
        """
        if blind := self._blind_to(path):
            raise UserError(
                f"{', '.join(blind)} cannot see {path}, which rank 0 has made: see to it that all machines share the "
                "file system, then resume the run"
            )

    def _blind_to(self, path: Path) -> list[str]:
        """The names of the ranks that do not see what rank 0 has made before it called this, though they wait."""
        if self.count == 1:
            return []
        self.every(None)
        until = time.monotonic() + SEEN_S
        while not (is_there := path.exists()) and time.monotonic() < until:
            time.sleep(0.1)
        return [self.watch.names[rank] for rank, sees in enumerate(self.every(is_there)) if not sees]

    @contextmanager
    def between_saves(self) -> Iterator[None]:
        """Inside, with several ranks, SIGTERM ends none of them at once: `to_end` says that it came."""
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: object) -> None:
            self.asked = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def to_end(self) -> bool:
        """Whether any rank has been asked to end; then all have."""
        if any(self.every(self.asked)):  # no assignment otherwise: the signal may come meanwhile
            self.asked = True
            return True
        return False

    def _whole(self, own: Tensor, counts: list[int]) -> Tensor:
        whole = torch.empty(sum(counts), *own.shape[1:], dtype=own.dtype)
        parts = whole.split(counts)
        parts[self.rank].copy_(own)
        for rank, part in enumerate(parts):
            if part.numel():
                self._exchange(distributed.broadcast, part, src=rank)
        return whole.to(own.device)

    def _exchange(self, call: Callable, *arguments: Any, **named: Any) -> None:
        try:
            call(*arguments, **named)
        except RuntimeError as error:
            self.watch.roll_call()
            raise UserError(
                f"communication with the other ranks failed: {(str(error).splitlines() or ['?'])[0][:200]}; look for "
                "an error in the output of all ranks"
            ) from error


ALONE = Ranks()
