"""What the engine does between two records as CUDA graphs: Python and launches are paid for once."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.rollout.memory import ran_out

Thought = TypeVar("Thought", bound=Slots)


def bucket(count: int, capacity: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... and `capacity` that holds `count`: few graphs, and a third of the
    slots idle at most."""
    whole = 1 << (count - 1).bit_length()
    return min(whole * 3 // 4 if count <= whole * 3 // 4 else whole, capacity)


class Graphs:
    """Calls a function over the first slots; from the second time on replays what was recorded the second time.

    A graph reads and writes fixed memory: slots that are views of one allocation, weights that change in place, and
    results that the next replay overwrites. So a graph belongs to its slots, to the number of them (a bucket: the slots
    between `count` and its end are computed and left out), and to whatever numbers `think` is called with: those of
    other numbers are dropped. Other slots want other `Graphs`. All share one pool of memory, for they run in turn and
    what one leaves there is used before the next runs; and one stream of their own, for libraries keep a workspace per
    stream, which goes when a graph of that stream does.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Thought] | None] = {}  # by bucket and first slot
        self.numbers: tuple[Hashable, ...] = ()
        self.pool: tuple[int, int] | None = None  # of these numbers: one that has lost all its graphs is not used again
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, think: Callable[..., Thought], slots: Slots, count: int, *numbers: Hashable) -> Thought:
        """think(slots[:bucket], *numbers), of which the first `count` rows. `think` is always the same.

        Raises UserError if it cannot be recorded: it waits for the device.
        """
        live = slots[: bucket(count, len(slots))]
        if numbers != self.numbers:
            self.graphs, self.numbers, self.pool = {}, numbers, None
        key = (len(live), next(live.tensors()).data_ptr())
        if key not in self.graphs:  # the first time as it is: kernels are compiled, libraries set up
            self.graphs[key] = None
            return think(live, *numbers)[:count]
        if self.graphs[key] is None:
            self.graphs[key] = self._recorded(think, live, numbers)
        graph, thought = self.graphs[key]
        graph.replay()
        return thought[:count]

    def _recorded(
        self, think: Callable[..., Thought], live: Slots, numbers: tuple[Hashable, ...]
    ) -> tuple[torch.cuda.CUDAGraph, Thought]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        self.stream = self.stream or torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                thought = think(live, *numbers)
        except RuntimeError as error:
            if ran_out(error):
                raise
            raise UserError(
                f"a chunk cannot be recorded as a CUDA graph ({error}). A policy that waits for the device, by .item() "
                "or a mask as an index, cannot be; run such a one with EngineConfig(graphs=False)"
            ) from error
        return graph, thought
