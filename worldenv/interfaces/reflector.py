"""The interface of a reflector: the judge that gives the reward and says when the task is done."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from worldenv.interfaces.observation import Observation
from worldenv.interfaces.slots import Slots


@runtime_checkable
class Reflector(Protocol):
    """Judges every new frame of an episode by all that came before it. Reward and stop come from one scorer.

    A reflector may also have a number `likely`, the reward above which it takes success for likely: 0.5 where its
    reward is a probability. Evaluations then count an imagined episode as a success if a reward is higher; otherwise
    only if the reflector stops it. A stop may ask for more certainty.
    """

    def read(self, texts: Sequence[str]) -> Any:
        """What judging needs of a table of instructions; called at the beginning of every rollout and evaluation.

        Tensors, or nested containers of tensors. `begin` looks its rows up by `seen.text`.
        """

    def begin(self, seen: Observation, read: Any) -> Slots:
        """The state of episodes that begin with this observation. May keep no view of `seen`."""

    def judge(self, frames: Tensor, state: Slots) -> tuple[Tensor, Tensor]:
        """Reward [B, K] float32 in [0, 1] and stop [B, K] bool after each frame [B, K, V, H, W, 3]; moves `state` on
        in place."""
