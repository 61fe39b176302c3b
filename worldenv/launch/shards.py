"""A policy that is too large to be learnt whole on every rank: FSDP2 shares out weights, gradients and moments.

FSDP gathers a layer right before it computes, so all ranks have to compute the same number of passes. Acting cannot
promise that: episodes end when they end. So a policy acts whole, and a copy of it learns, whose layers are in shards.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from worldenv.errors import UserError
from worldenv.launch.ranks import Ranks

REMEDY = "leave out --launch.shard, which then needs memory for the whole policy on every rank"


def layers_of(policy: nn.Module) -> tuple[str, list[nn.Module]]:
    """Name and modules of the list that is sharded: of all `nn.ModuleList`, the one with the most numbers.

    Raises UserError if there is none, or if its modules cannot be sharded.
    """
    if not isinstance(policy, nn.Module):
        raise UserError(f"the policy is a {type(policy).__name__}, no nn.Module, and cannot be sharded; {REMEDY}")
    lists = {name: module for name, module in policy.named_modules() if isinstance(module, nn.ModuleList) and module}
    if not lists:
        raise UserError(f"the policy has no layers to shard: none of its modules is an nn.ModuleList; {REMEDY}")
    name = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    for layer in lists[name]:
        if isinstance(layer, nn.ModuleList | nn.ModuleDict):
            raise UserError(f"the layers in the policy's {name} are of {type(layer).__name__}, never called; {REMEDY}")
        learnt = {str(parameter.dtype) for parameter in layer.parameters() if parameter.requires_grad}
        if len(learnt) > 1:
            raise UserError(
                f"a layer in the policy's {name} learns numbers of {' and '.join(sorted(learnt))}, which FSDP does not "
                f"take together; {REMEDY}"
            )
    return name, list(lists[name])


def sharded_copy(policy: nn.Module, ranks: Ranks) -> nn.Module:
    """A copy of a policy whose layers are in shards: their gradients come out as sums over the ranks, in shards.

    Raises UserError as `layers_of` does, and if the policy cannot be copied.
    """
    layers_of(policy)
    try:
        learns = copy.deepcopy(policy)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"the policy cannot be copied, which sharding needs ({error}); {REMEDY}") from error
    mesh = init_device_mesh(next(policy.parameters()).device.type, (ranks.count,))
    getattr(mesh, "_pg_registry", {}).clear()  # torch's caches hold the mesh for ever, and it the group: see `joined`
    for layer in layers_of(learns)[1]:
        for parameter in layer.parameters():
            parameter.data = parameter.data.contiguous()  # of a convolution they may lie otherwise, which FSDP refuses
        sums = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=sums)
        layer.set_gradient_divide_factor(1.0)  # a sum, no mean
        layer.set_force_sum_reduction_for_comms(True)  # gloo can do nothing else
    return learns


@contextmanager
def calls_layers(policy: nn.Module) -> Iterator[None]:
    """Raise UserError at the end of a block that computes, if it called no layer, which is when FSDP gathers one."""
    name, layers = layers_of(policy)
    called: list[nn.Module] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.append(layer)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise UserError(
            f"the policy computes with parts of its `{name}` without calling them, so they cannot be sharded; {REMEDY}"
        )


def is_shard(tensor: Tensor) -> bool:
    """Whether each rank holds a part of this tensor only."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all ranks, which all have to ask for it."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or this rank's part of it where `like` is in shards."""
    if not is_shard(like) or is_shard(tensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, ranks: Ranks) -> Tensor:  # []
    """As `nn.utils.clip_grad_norm_`, where some gradients are in shards: the norm is that of the whole ones."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [own_part(gradient) for gradient in gradients if is_shard(gradient)]
    common = [gradient for gradient in gradients if not is_shard(gradient)]
    device = parameters[0].device
    squares = [nn.utils.get_total_norm(some).to(device).square() for some in (parts, common)]
    (of_parts,) = ranks.add_gradients([], squares[0])
    norm = (of_parts + squares[1]).sqrt()
    for gradient in parts + common:
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return norm
