"""What the engine does between two records as CUDA graphs: Python and launches are paid for once."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from worldenv.slots import Slots

Thought = TypeVar("Thought", bound=Slots)


def bucket(count: int, capacity: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... and `capacity` that holds `count`: few graphs, and a third of the
    slots idle at most."""
    whole = 1 << (count - 1).bit_length()
    return min(whole * 3 // 4 if count <= whole * 3 // 4 else whole, capacity)


class Graphs:
    """Calls `think` over the first slots; from the second time on by replaying what was recorded the second time.

    A graph reads and writes fixed memory: slots that are views of one allocation, weights that change in place, and
    results that the next replay overwrites. So a graph belongs to its slots, to the number of them (a bucket: the slots
    between `count` and its end are computed and left out), and to whatever numbers `think` is called with: those of
    other numbers are dropped. Other slots want other `Graphs`.
    """

    def __init__(self, think: Callable[..., Thought]):
        self.think = think
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Thought] | None] = {}  # by bucket and first slot
        self.numbers: tuple[Hashable, ...] = ()

    def __call__(self, slots: Slots, count: int, *numbers: Hashable) -> Thought:
        """think(slots[:bucket], *numbers), of which the first `count` rows."""
        live = slots[: bucket(count, len(slots))]
        if numbers != self.numbers:
            self.graphs, self.numbers = {}, numbers
        key = (len(live), next(live.tensors()).data_ptr())
        if key not in self.graphs:  # the first time as it is: kernels are compiled, libraries set up
            self.graphs[key] = None
            return self.think(live, *numbers)[:count]
        if self.graphs[key] is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                thought = self.think(live, *numbers)
            self.graphs[key] = graph, thought
        graph, thought = self.graphs[key]
        graph.replay()
        return thought[:count]
