"""What callers give to learning, and what a policy offers to train, checked before any weight changes."""

import math
from collections.abc import Mapping, Set
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.policy import Policy
from worldenv.interfaces.world import WorldModel
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.checks import check_members
from worldenv.rollout.episodes import Rollouts


def trainable(policy: Policy) -> list[nn.Parameter]:
    """The parameters that a policy offers to train, each once.

    Raises UserError if there is none, if the order is not fixed, or if one cannot be trained or is not saved with the
    policy.
    """
    check_members("policy", policy, Policy, "state_dict")
    given = policy.trainable()
    if given is None or isinstance(given, Tensor | Mapping | Set | str) or not hasattr(given, "__iter__"):
        raise UserError(f"the policy's `trainable` returned a {type(given).__name__}; it should be a list")
    listed = list(given)
    if not listed:
        raise UserError("the policy has no trainable parameters: its `trainable` returned none")
    if wrong := [one for one in listed if not isinstance(one, Tensor) or not one.is_leaf]:
        raise UserError(
            f"the policy's `trainable` returned a list with a {type(wrong[0]).__name__} that is no parameter; return "
            "list(module.parameters())"
        )
    if any(parameter.is_inference() for parameter in listed):
        raise UserError("the policy was made in torch.inference_mode and cannot be trained; make it outside of it")
    if not any(parameter.requires_grad for parameter in listed):
        raise UserError("none of the policy's trainable parameters requires a gradient; call requires_grad_(True)")
    if isinstance(policy, nn.Module) and not {*map(id, listed)} <= {*map(id, policy.parameters())}:
        raise UserError(
            "the policy's `trainable` returned parameters that are not among policy.parameters(), so what they learn "
            "would not be saved; keep their modules in attributes, nn.ModuleList or nn.ModuleDict"
        )
    return list({id(one): one for one in listed}.values())


def heads_apart(
    policy: Policy,
    listed: list[nn.Parameter],  # what it offers to train
    config: PostTrainConfig,
) -> list[tuple[float, list[nn.Parameter]]]:
    """Highest learning rate and parameters of each group of the optimizer: one, or adapters and heads.

    Raises UserError if heads are to have a rate of their own and the policy does not say which they are.
    """
    if config.head_learning_rate is None:
        return [(config.learning_rate, listed)]
    if not hasattr(policy, "head_parameters"):
        raise UserError(
            "--rl.head-learning-rate is for a policy that has the method `head_parameters`, as released ones do; leave "
            "it out for this one"
        )
    heads = {*map(id, policy.head_parameters())}
    groups = [(config.learning_rate, [one for one in listed if id(one) not in heads])]
    groups.append((config.head_learning_rate, [one for one in listed if id(one) in heads]))
    return [(rate, group) for rate, group in groups if group]


def check_saveable(policy: Policy) -> None:
    """Raise UserError unless the weights of a policy can be saved, and loaded again."""
    weights = policy.state_dict()
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(
            f"the policy's state_dict has the entry {shown(wrong[0])}, a {type(weights[wrong[0]]).__name__}; only "
            "tensors are saved: keep the rest out of it, and make it again when the policy is made"
        )
    for name, tensor in weights.items():
        if is_lazy(tensor):
            raise UserError(f"the policy's {name} has no shape yet; call its module once when the policy is made")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise UserError(
                f"the policy's {name} is {tensor.layout} {tensor.dtype} on {tensor.device}, which cannot be saved"
            )
    parameters = policy.named_parameters() if isinstance(policy, nn.Module) else ()
    if infinite := [name for name, parameter in parameters if not parameter.isfinite().all()]:
        raise UserError(
            f"the policy's {infinite[0]} holds numbers that are not finite; nothing can be learnt from there"
        )


def check_practice(policy: Policy, world: WorldModel, config: PostTrainConfig) -> None:
    """Raise UserError if the settings of practice ask for what policy or world model does not offer."""
    if config.critic and not hasattr(policy, "value_input"):
        raise UserError(
            "--rl.critic needs a policy with the method `value_input`, which says what a critic reads of recorded "
            "decisions (docs/add_a_policy.md); take --rl.no-critic for this one"
        )
    if config.needs_hold and not getattr(world, "tells_held", False):
        raise UserError(
            "--rl.needs-hold needs a world model that tells what is held, as the composer does; take "
            "--rl.no-needs-hold for this one"
        )


def check_names(policy: Policy, names: Set[str]) -> None:
    """Raise UserError if the policy's weights have other names than when learning began."""
    if now := policy.state_dict().keys() ^ names:
        raise UserError(
            f"the entry {min(now)} of the policy's state_dict was added or removed while the policy acted, so a new "
            "policy could not load its weights; make all modules when the policy is made"
        )


def check_rollouts(rollouts: Any) -> None:
    """Raise UserError unless these are rollouts, as an engine returns them."""
    if not isinstance(rollouts, Rollouts):
        raise UserError(f"rollouts is a {type(rollouts).__name__}; it should be worldenv.Rollouts, of Engine.run")


def check_groups(rollouts: Any, siblings: Any, signal: Any, guard: Any) -> None:
    """Raise UserError for arguments of `group_advantage` that are of another kind or do not fit each other."""
    check_rollouts(rollouts)
    episodes = len(rollouts.chunks)
    counted = isinstance(siblings, Integral) and not isinstance(siblings, bool)
    if not counted or siblings < 1 or episodes % siblings:
        raise UserError(
            f"siblings is {shown(siblings)}; it should be the number that the {episodes} rollouts were made with"
        )
    if not isinstance(signal, Real) or isinstance(signal, bool) or not 0 <= signal <= 1:
        raise UserError(f"signal is {shown(signal)}; it should be a number from 0 to 1")
    if not isinstance(guard, Real) or isinstance(guard, bool) or not 0 <= guard < math.inf:
        raise UserError(f"guard is {shown(guard)}; it should be a finite number, 0 or more")


def check_update(rollouts: Rollouts, advantage: Any, generator: Any) -> None:
    """Raise UserError unless there is an advantage for each rollout, and there is something to learn from."""
    if rollouts.record is None:
        raise UserError("the policy cannot be trained: its `act` returned a decision whose record is None")
    if not isinstance(generator, torch.Generator):
        raise UserError(f"generator is a {type(generator).__name__}; it should be a torch.Generator")
    chunks, device = [*rollouts.log_prob.shape], rollouts.chunks.device
    is_float = isinstance(advantage, Tensor) and advantage.dtype == torch.float32
    if not is_float or [*advantage.shape] not in (chunks[:1], chunks) or advantage.device != device:
        is_tensor = isinstance(advantage, Tensor)
        found = f"{advantage.dtype} {list(advantage.shape)}" if is_tensor else f"a {type(advantage).__name__}"
        raise UserError(
            f"advantage is {found}; it should be torch.float32 {chunks[:1]} or {chunks} on {device}, one for each "
            "episode or chunk"
        )
    if not advantage.isfinite().all():
        raise UserError("advantage has numbers that are not finite")
