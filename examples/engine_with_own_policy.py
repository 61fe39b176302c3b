"""A policy of your own in the engine: python examples/engine_with_own_policy.py

The module here knows nothing yet, and acts in chunks of two where the shipped policy takes four. For one that is no
Laplace distribution, or looks at other things, implement worldenv.Policy itself.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor, nn

import worldenv

WORDS = 256  # rows of the table of words; a word's row is its hash


class OwnPolicy(worldenv.LaplacePolicy):
    """What it sees stays as it is; its last layer is what reinforcement learning would train."""

    chunk, views = 2, ("agentview",)

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.Conv2d(16, 16, 5, 4), nn.ReLU(), nn.Flatten())
        self.words = nn.EmbeddingBag(WORDS, 16)
        self.plan = nn.Linear(16 * 3 * 3 + 16 + 7, 2 * 14)

    def read(self, texts: Sequence[str]) -> Tensor:  # [M, 16], a row for each of the run's instructions
        rows = [torch.tensor([[crc32(word.encode()) % WORDS for word in text.split()]]) for text in texts]
        return torch.cat([self.words(row) for row in rows])

    def see(self, seen: worldenv.Observation, read: Tensor) -> Tensor:  # [B, D]
        picture = self.look(seen.frames[:, 0].permute(0, 3, 1, 2).float() / 255)  # of the first of its views
        return torch.cat([picture, read[seen.text]], dim=1)

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:  # mean and log-scale, [B, 2, 7]
        mu, scale = self.plan(torch.cat([feature, proprio], dim=1)).unflatten(1, (2, 14)).split(7, 2)
        return mu.tanh(), scale.tanh() - 2

    def trainable(self) -> list[nn.Parameter]:
        return list(self.plan.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--starts", type=int, default=30, help="start states, the tasks in turn")
    parser.add_argument("--siblings", type=int, default=4, help="episodes of each")
    args = parser.parse_args()
    worldenv.keep_freed_memory()
    torch.manual_seed(0)
    parts = worldenv.load()
    starts = worldenv.practice_starts(parts.suite, 0).pick(torch.arange(args.starts))
    own = replace(parts, policy=OwnPolicy())  # the world model and the reflector still compute in 8 bits where they can
    for name, some in (("the shipped policy", parts), ("a policy of your own", own)):
        engine = worldenv.make_engine(some)
        began = time.perf_counter()
        rollouts = engine.run(starts, args.siblings, seed=0)
        seconds = time.perf_counter() - began
        print(
            f"{name}: chunks of {engine.chunk}, {len(rollouts)} episodes in {seconds:.1f} s, "
            f"mean reward {rollouts.final_reward().mean():.3f}, "
            f"stopped as done {100 * rollouts.stopped.float().mean():.0f} %"
        )


if __name__ == "__main__":
    main()
