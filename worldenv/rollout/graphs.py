"""A chunk of the engine as a CUDA graph: Python and kernel launches are paid for once."""

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.rollout.memory import ran_out

Thought = TypeVar("Thought", bound=Slots)
RECORDING = threading.Lock()  # with --rl.off-policy two threads use graphs, and torch records one at a time


def bucket(count: int, capacity: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... and `capacity` that is at least `count`.

    So there are few graphs, and at most a third of the slots that a graph computes are idle.
    """
    whole = 1 << (count - 1).bit_length()
    return min(whole * 3 // 4 if count <= whole * 3 // 4 else whole, capacity)


class Graphs:
    """Calls a function over the first slots. The second call is recorded; later calls replay the recording.

    A graph reads and writes fixed memory: slots that are views of one allocation, weights that change in place, and
    results that the next replay overwrites. So a graph belongs to its slots, to their number (a bucket: the slots from
    `count` to its end are computed, and their results dropped), and to the numbers that `think` is called with; when
    these change, all graphs are dropped. Other slots need another `Graphs`. All graphs share one memory pool, because
    they run in turn and the results of one are used before the next runs. They also share a stream of their own,
    because libraries keep a workspace per stream and free it with a graph of that stream.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Thought] | None] = {}  # by bucket and first slot
        self.numbers: tuple[Hashable, ...] = ()
        self.pool: tuple[int, int] | None = None  # a pool whose graphs were dropped is not used again
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, think: Callable[..., Thought], slots: Slots, count: int, *numbers: Hashable) -> Thought:
        """The first `count` rows of think(slots[:bucket], *numbers). `think` is always the same function.

        Raises UserError if it cannot be recorded because it waits for the device.
        """
        live = slots[: bucket(count, len(slots))]
        if numbers != self.numbers:
            self.graphs, self.numbers, self.pool = {}, numbers, None
        key = (len(live), next(live.tensors()).data_ptr())
        if key not in self.graphs:  # the first call is not recorded: it compiles kernels and sets up libraries
            self.graphs[key] = None
            return think(live, *numbers)[:count]
        if self.graphs[key] is None:
            with RECORDING:
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
            mode = "thread_local"  # another thread may learn meanwhile, and allocate memory
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode):
                thought = think(live, *numbers)
        except RuntimeError as error:
            if ran_out(error):
                raise
            raise UserError(
                f"a chunk cannot be recorded as a CUDA graph ({error}). A policy that waits for the device, by .item() "
                "or a mask as an index, cannot be recorded; run it with EngineConfig(graphs=False)"
            ) from error
        return graph, thought
