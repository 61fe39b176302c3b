"""One step off policy: the next iteration is imagined while the policy learns from the present one."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.rl.checks import trainable
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Rollouts
from worldenv.rollout.modes import network_of, put_in_evaluation

Imagined = tuple[Rollouts, torch.Generator]  # rollouts of an iteration, and the generator that drew its starts
REMEDY = "leave out --rl.off-policy"


class Ahead:
    """A thread in which a copy of the policy acts: as the policy was before the update that is under way.

    `take` gives what the copy imagined, `begin` lets it imagine the next iteration. What it imagines depends on its
    weights and on the number of the iteration, and not on when it does so. Leaving the block ends imagining at
    the next chunk.
    Raises UserError for a policy that cannot be copied.
    """

    def __init__(self, engine: Engine, imagine: Callable[[Engine, int], Imagined], iterations: int):
        self.imagine, self.iterations = imagine, iterations
        if (network := network_of(engine.policy)) is not None:
            put_in_evaluation(network)  # as acting would: here only the copy acts
        self.policy = engine.policy
        acts = _copy(engine.policy, trainable(engine.policy))
        self.weights = _changing(acts)
        self.engine = engine.with_policy(acts)
        self.coming: Future | None = None
        modes = torch.get_num_threads(), torch.get_default_device()
        self.thread = ThreadPoolExecutor(1, "imagine", _settle, modes)
        self.stream = torch.cuda.Stream(engine.world.device) if engine.world.device.type == "cuda" else None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.end()
        self.thread.shutdown()

    def take(self, iteration: int) -> tuple[Imagined, float]:
        """What was imagined for an iteration, and the seconds that it took. The first time, it is imagined now."""
        coming = self.coming or self._submit(iteration)
        self.coming = None
        return coming.result()

    @torch.no_grad()
    def begin(self, iteration: int) -> None:
        """Let the copy take over the present weights and imagine an iteration, if the run has one of that number."""
        for mine, now in zip(self.weights, _changing(self.policy), strict=True):
            mine.copy_(now)
        if iteration < self.iterations:
            self.coming = self._submit(iteration)

    def state(self) -> dict[int, Tensor]:
        """The weights with which the next iteration is imagined, for `take_up` in a later session."""
        return dict(enumerate(self.weights))

    def fits(self, state: dict[Any, Any]) -> bool:
        """Whether these are weights for `take_up`. An older version kept, and took over, no buffers."""
        mine, learnt = self.state(), range(len(trainable(self.policy)))
        return {*learnt} <= state.keys() <= mine.keys() and all(
            isinstance(kept, Tensor) and kept.shape == mine[i].shape for i, kept in state.items()
        )

    @torch.no_grad()
    def take_up(self, state: dict[int, Tensor]) -> None:
        for i, kept in state.items():
            self.weights[i].copy_(kept)

    def _submit(self, iteration: int) -> Future:
        if self.stream is None:
            return self.thread.submit(self._timed, iteration)
        learns = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(learns)  # learning writes the weights
        return self.thread.submit(self._on_stream, iteration, learns)

    def _timed(self, iteration: int) -> tuple[Imagined, float]:
        began = time.monotonic()
        imagined = self.imagine(self.engine, iteration)
        return imagined, time.monotonic() - began

    def _on_stream(self, iteration: int, learns: torch.cuda.Stream) -> tuple[Imagined, float]:
        torch.cuda.set_device(self.stream.device)  # a new thread begins on the first GPU
        with torch.cuda.stream(self.stream):
            imagined, seconds = self._timed(iteration)
        self.stream.synchronize()
        for tensor in imagined[0].tensors():
            tensor.record_stream(learns)  # so that its memory is not given away while the learner still reads it
        return imagined, seconds


def _copy(policy: Any, learnt: list[nn.Parameter]) -> Any:
    """A copy of the policy, with parameters of its own for those that learn; it shares all others."""
    own = {*map(id, learnt)}
    parameters = policy.parameters() if isinstance(policy, nn.Module) else ()
    try:
        return copy.deepcopy(policy, {id(one): one for one in parameters if id(one) not in own})
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"the policy cannot be copied, so no copy of it can act ({error}); {REMEDY}") from error


def _changing(policy: Any) -> list[Tensor]:
    """The saved tensors that may change while a policy learns: its trainable parameters and its saved buffers."""
    saved = policy.state_dict().keys()
    buffers = policy.named_buffers() if isinstance(policy, nn.Module) else ()
    return [*trainable(policy), *(buffer for name, buffer in buffers if name in saved)]


def _settle(threads: int, device: torch.device) -> None:
    """A new thread computes as its maker does."""
    torch.set_num_threads(threads)
    if device.type != "cpu":
        torch.set_default_device(device)
