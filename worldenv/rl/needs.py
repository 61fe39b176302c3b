"""Whether practice can be shared by a number of ranks, and what it then needs, said before it begins."""

from worldenv.errors import UserError
from worldenv.interfaces.observation import Starts
from worldenv.launch.ranks import Ranks
from worldenv.launch.share import ranks_here
from worldenv.rl.checks import trainable
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import Engine
from worldenv.rollout.modes import network_of

FLOATS = 4  # of each trained parameter: gradient, two moments of Adam, its place in what is exchanged


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


def needs(engine: Engine, start: Starts, config: PostTrainConfig, ranks: Ranks) -> str:
    """One line: episodes of each rank, memory of each rank, and bytes that each sends in an iteration."""
    slot, record = engine.bytes_per_episode(start)
    episodes, whole = most_episodes(ranks, config), config.starts * config.siblings
    held = episodes * record + min(engine.capacity or episodes, episodes) * slot
    learnt = sum(parameter.numel() for parameter in trainable(engine.policy) if parameter.requires_grad)
    networks = {network_of(part) for part in (engine.policy, engine.world, engine.reflector)} - {None}
    weights = sum(t.numel() * t.element_size() for network in networks for t in network.state_dict().values())
    learning = FLOATS * 4 * learnt
    steps = config.epochs * -(-whole * engine.horizon // config.minibatch)
    sent = 2 * (ranks.count - 1) / ranks.count * 4 * learnt * steps  # a ring, whose gradients are float32
    return (
        f"{ranks.count} ranks, {ranks_here()} of them on this machine: each imagines at most {episodes} of the "
        f"{whole} episodes of an iteration; it needs about {_mb(held + weights + learning)} of memory beside the "
        f"libraries (episodes {_mb(held)}, weights {_mb(weights)}, learning {_mb(learning)}), and sends at most "
        f"{_mb(sent)} in an iteration ({steps} steps)"
    )


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
