"""Measure what the layers of the networks read while they imagine, so that they can do it in 8 bits."""

from collections.abc import Mapping
from contextlib import ExitStack

from torch import nn

from worldenv.interfaces.observation import Starts
from worldenv.nn.int8 import Ranges, measured
from worldenv.rollout.engine import Engine

EPISODES = 64


def measure_ranges(networks: Mapping[str, nn.Module], engine: Engine, starts: Starts, seed: int) -> dict[str, Ranges]:
    """The least and greatest input of every layer, by network, over imagined episodes that go on to the horizon.

    `engine` imagines with these networks in float32.
    """
    with ExitStack() as stack:
        ranges = {name: stack.enter_context(measured(network)) for name, network in networks.items()}
        engine.run(starts, 1, seed, stop=False)
    return ranges
