"""How long an iteration of practice takes on a number of ranks: arithmetic, nothing is measured."""

import math
from dataclasses import dataclass

OBJECTS = 5  # exchanges of figures in an iteration, each in two rounds: sizes, then contents
USEFUL = ("imagine", "learn")  # what one rank has to do, too


@dataclass(frozen=True)
class Practice:
    """An iteration. Every episode is counted to the horizon, and every chunk as one that teaches something."""

    starts: int  # N
    siblings: int  # G
    chunks: int  # of an episode, T
    epochs: int
    minibatch: int  # chunks
    learns: int  # numbers
    imagine_s: float  # of a rank, for a chunk of one episode: policy, world model and reflector
    learn_s: float  # of a rank, to learn from a chunk once


@dataclass(frozen=True)
class Links:
    """What connects the ranks."""

    bytes_s: float  # that a rank sends while it receives as many
    message_s: float  # of the shortest message
    disk_bytes_s: float  # at which rank 0 writes the state


def iteration_s(practice: Practice, links: Links, ranks: int) -> dict[str, float]:
    """Seconds of an iteration by what takes them; their sum is the iteration.

    imagine, learn: the work, shared out without a rest. starts: the wait for ranks that have one start more.
    minibatches: the wait, in each step of the optimizer, for the rank that has most of its chunks. gradients: their sum
    over a ring. figures: small exchanges, over rings. state: rank 0 writes it while the others wait.
    """
    p, others = practice, ranks - 1
    chunks = p.starts * p.siblings * p.chunks
    steps = p.epochs * -(-chunks // p.minibatch)
    size = min(p.minibatch, chunks)
    imagine, learn = chunks * p.imagine_s / ranks, p.epochs * chunks * p.learn_s / ranks
    return {
        "imagine": imagine,
        "learn": learn,
        "starts": -(-p.starts // ranks) * p.siblings * p.chunks * p.imagine_s - imagine,
        "minibatches": steps * (largest_share(size, ranks) - size / ranks) * p.learn_s,
        "gradients": steps * 2 * others * (8 * p.learns / ranks / links.bytes_s + links.message_s),
        "figures": 2 * OBJECTS * others * links.message_s,
        "state": 3 * 4 * p.learns / links.disk_bytes_s,
    }


def efficiency(parts: dict[str, float]) -> float:
    """The share of the ranks' time that is work."""
    return sum(parts[name] for name in USEFUL) / sum(parts.values())


def bottleneck(parts: dict[str, float]) -> str:
    """What takes most of the time that is no work."""
    return max(parts.keys() - set(USEFUL), key=parts.get)


def largest_share(count: int, ranks: int) -> float:
    """How many of `count` chunks the rank with most of them has on average, if each falls to any rank alike.

    The ranks' numbers are taken for independent.
    """
    if ranks == 1:
        return float(count)
    at_most, expected, share = 0.0, 0.0, 1 / ranks
    for k in range(count):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        at_most += math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))
        expected += 1 - min(at_most, 1.0) ** ranks
    return expected
