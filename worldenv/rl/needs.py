"""Whether practice can be shared by a number of ranks, and what it then needs, said before it begins."""

from collections.abc import Iterable
from contextlib import nullcontext

from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Starts
from worldenv.launch.ranks import Ranks
from worldenv.launch.share import ranks_here
from worldenv.rl.checks import trainable
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import Engine
from worldenv.rollout.modes import network_of

# Memory of a trained number, in units of 4 bytes: gradient, two moments of Adam, and 2 each for the sum of gradients in
# float64 and its place in the exchanged buffer. In shards, gradients are added in float32, in one buffer.
FLOATS, FLOATS_IN_SHARDS = 7, 4


def check_enough_groups(count: int, config: PostTrainConfig) -> None:
    """Raise UserError for more ranks than groups of siblings."""
    if count > config.starts:
        raise UserError(
            f"there are {count} ranks for --rl.starts {config.starts}: siblings of one start stay on a rank, so take "
            f"at most {config.starts} ranks, or more starts"
        )


def most_episodes(ranks: Ranks, config: PostTrainConfig) -> int:
    """Episodes that a rank imagines in an iteration, at most."""
    return -(-config.starts // ranks.count) * config.siblings


def needs(engine: Engine, start: Starts, config: PostTrainConfig, ranks: Ranks, shard: bool = False) -> str:
    """One line: episodes of each rank, memory of each rank, and bytes that each sends in an iteration.

    Raises UserError for a policy that cannot be sharded, if it is to be.
    """
    if shard:
        from worldenv.launch.shards import calls_layers, layers_of  # imports FSDP

    with calls_layers(engine.policy) if shard else nullcontext():
        slot, record = engine.bytes_per_episode(start)
    episodes, whole = most_episodes(ranks, config), config.starts * config.siblings
    held = (1 + config.off_policy) * episodes * record + min(engine.capacity or episodes, episodes) * slot
    learnt = sum(parameter.numel() for parameter in trainable(engine.policy) if parameter.requires_grad)
    networks = {network_of(part) for part in (engine.policy, engine.world, engine.reflector)} - {None}
    weights = sum(_bytes(network.parameters()) + _bytes(network.buffers()) for network in networks)
    if config.off_policy:  # a copy of the weights that learn acts
        weights += _bytes(trainable(engine.policy))
    steps = config.epochs * -(-whole * engine.horizon // config.minibatch)
    others = (ranks.count - 1) / ranks.count
    sent = 2 * others * 8 * learnt * steps  # a ring exchange of gradients in float64
    learning = FLOATS * 4 * learnt
    if shard:  # a copy learns, whose layers are gathered for every pass there and back
        layers = [parameter for layer in layers_of(engine.policy)[1] for parameter in layer.parameters()]
        apart = sum(parameter.numel() for parameter in layers if parameter.requires_grad)
        weights += _bytes(engine.policy.parameters()) - others * _bytes(layers)
        passes = -(-config.minibatch // (config.accumulate or config.minibatch))
        sent += others * (steps * passes * (2 * _bytes(layers) + 4 * apart) - steps * 2 * 8 * apart)
        learning += 4 * apart * (FLOATS_IN_SHARDS / ranks.count - FLOATS)
    return (
        f"{ranks.count} ranks, {ranks_here()} of them on this machine: each imagines at most {episodes} of the "
        f"{whole} episodes of an iteration; it needs about {_mb(held + weights + learning)} of memory beside the "
        f"libraries (episodes {_mb(held)}, weights {_mb(weights)}, learning {_mb(learning)}), and sends at most "
        f"{_mb(sent)} in an iteration ({steps} steps)"
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
