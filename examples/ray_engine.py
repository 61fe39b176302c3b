"""The rollout engine as a Ray actor: python examples/ray_engine.py

For a pipeline of your own on Ray: the engines get the policy's weights by object reference and return rollouts. Each
engine imagines its share of the starts, with all siblings of a start. With the same number of starts in all, an episode
has the same number, and so the same randomness, on any number of engines. `worldenv-train --launch.ray.workers N` needs
none of this (docs/clusters.md). Install with pip install "worldenv[ray]".
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import ray
import torch

import worldenv


@ray.remote
class Engine:
    def __init__(self):
        self.parts = worldenv.load()
        self.engine = worldenv.make_engine(self.parts)

    def run(self, weights: Mapping, starts: worldenv.Starts, siblings: int, seed: int, first: int) -> worldenv.Rollouts:
        self.parts.policy.load_state_dict(weights)
        return self.engine.run(starts, siblings, seed, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--engines", type=int, default=2, help="actors; each reserves a processor of the cluster")
    parser.add_argument("--starts", type=int, default=10, help="starts of each engine in an iteration")
    parser.add_argument("--siblings", type=int, default=8, help="episodes of each start")
    parser.add_argument("--iterations", type=int, default=3)
    args = parser.parse_args()
    # Without this, the actors import from the current folder, which may be a clone without compiled modules.
    ray.init(log_to_driver=False, runtime_env={"working_dir": str(Path(__file__).parent)})
    engines = [Engine.remote() for _ in range(args.engines)]
    parts, config = worldenv.load(), worldenv.PostTrainConfig(signal=0.0)
    starts, learner = worldenv.practice_starts(parts.suite, 0), worldenv.Learner(parts.policy, config)
    for iteration in range(args.iterations):
        began, generator = time.perf_counter(), torch.Generator().manual_seed(iteration)
        picked = torch.randint(len(starts), (args.engines, args.starts), generator=generator)
        weights = ray.put(parts.policy.state_dict())  # once, however many engines there are
        running, first = [], iteration * picked.numel() * args.siblings
        for i, (engine, own) in enumerate(zip(engines, picked, strict=True)):
            number = first + i * args.starts * args.siblings
            running.append(engine.run.remote(weights, starts.pick(own), args.siblings, 0, number))
        found = ray.get(running)
        for rollouts in found:
            advantage, _ = worldenv.group_advantage(rollouts, args.siblings, config.signal)
            learner.update(rollouts, advantage, generator)
        reward = torch.cat([rollouts.final_reward() for rollouts in found])
        print(f"{len(reward)} episodes in {time.perf_counter() - began:.1f} s: mean reward {reward.mean():.3f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
