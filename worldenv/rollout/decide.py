"""Ask a policy for a chunk, and check that the answer is what the interface says."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation, shown_to
from worldenv.interfaces.policy import Decision, Policy
from worldenv.interfaces.slots import Slots


def decide(
    policy: Policy,
    views: tuple[str, ...],  # of the observation
    actions: int,  # A
    seen: Observation,
    read: Any,  # of the policy
    key: Key,
    explore: bool,
) -> Decision:
    """The policy's decision from its own views, in float32.

    Raises UserError if it is no Decision, or if its actions or log-probabilities have another shape.
    """
    decision, b = policy.act(shown_to(seen, views, policy.views), read, key, explore), len(seen)
    if not isinstance(decision, Decision):
        raise UserError(f"the policy's `act` returned a {type(decision).__name__}; it should return a Decision")
    wanted = [b, policy.chunk, actions]
    action, log_prob = (_described(part) for part in (decision.action, decision.log_prob))
    if action != wanted or log_prob != [b]:
        raise UserError(
            f"the policy decided on actions {action} of log-probability {log_prob}; they should be {wanted} "
            f"(episodes, actions of a chunk, numbers of an action) and {[b]}"
        )
    if decision.record is not None and not isinstance(decision.record, Slots):
        raise UserError(
            f"the policy's record is a {type(decision.record).__name__}; it should be a dataclass that inherits "
            "worldenv.Slots, or None"
        )
    return replace(decision, action=_in_float32(decision.action), log_prob=_in_float32(decision.log_prob))


def _in_float32(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32:
        return tensor
    if not tensor.is_floating_point():
        raise UserError(f"the policy decided in {tensor.dtype}; action and log-probability should be of a float dtype")
    return tensor.float()


def check_views(policy: Policy, views: tuple[str, ...], whose: str) -> None:
    """Raise UserError unless all views that the policy looks at are there."""
    if missing := [view for view in policy.views if view not in views]:
        raise UserError(
            f"the policy needs the views {', '.join(missing)}, which {whose} does not have; it has {', '.join(views)}"
        )


def _described(value: object) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
