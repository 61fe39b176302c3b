"""The interface of a policy: what acts, and what reinforcement learning improves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.slots import Slots


@dataclass
class Decision(Slots):
    """What a policy decides for B episodes: a chunk of actions, and what `log_prob` will need of this moment."""

    action: Tensor  # [B, K, A] float32; limited to [-1, 1] by whoever carries it out
    log_prob: Tensor  # [B] float32, of the whole chunk
    record: Slots | None  # tensors [B, ...]; None: the policy is not to be trained. May be views of the observation


@runtime_checkable
class Policy(Protocol):
    """An `nn.Module` that acts in chunks of `chunk` actions, from the pictures of the cameras named in `views`.

    A policy may also offer `ppo_loss(record, action, log_prob, advantage, clip) -> (loss, clipped share)`: the clipped
    objective of PPO computed in its own way, where that is faster than through `log_prob`.

    For `--rl.critic`, it offers `value_input(record) -> [..., N] float32`: N numbers that a critic reads of recorded
    decisions, whose tensors are [..., ...].

    A released policy offers `write_back(folder)`: it writes itself in its authors' layout, into a folder that is not
    there yet. A run does so when practice has ended.

    `head_parameters()` are those of `trainable()` that may have a rate of their own, `--rl.head-learning-rate`.
    """

    chunk: int  # K
    views: tuple[str, ...]

    def read(self, texts: Sequence[str]) -> Any:
        """What acting needs of a table of instructions; called at the beginning of every rollout and
        evaluation, before any `act`.

        Tensors or nested containers of tensors. `act` looks its rows up by `seen.text`.
        """

    def act(self, seen: Observation, read: Any, key: Key, explore: bool) -> Decision:
        """A chunk of actions for every episode; the most likely or mean one unless `explore`. No gradient."""

    def log_prob(self, record: Slots, action: Tensor) -> Tensor:  # [B, K, A] -> [B]
        """Log-probability of chunks under the present weights, with a gradient: what learning goes through."""

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that reinforcement learning changes."""
