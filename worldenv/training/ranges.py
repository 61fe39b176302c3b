"""Measure what the layers of the models read while they imagine, so that they can do it in 8 bits."""

from contextlib import ExitStack

from worldenv.nn.int8 import Ranges, measured
from worldenv.records.model_files import Models
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Starts

EPISODES = 64


def measure_ranges(models: Models, engine: Engine, starts: Starts, seed: int) -> dict[str, Ranges]:
    """The least and greatest input of every layer, by model, over imagined episodes that go on to the horizon.

    `engine` imagines with `models` in float32.
    """
    with ExitStack() as stack:
        ranges = {name: stack.enter_context(measured(part)) for name, part in models.parts().items()}
        engine.run(starts, 1, seed, stop=False)
    return ranges
