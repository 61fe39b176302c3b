"""The loop that every user of Gymnasium has, on imagined episodes: python examples/gymnasium_loop.py

Needs pip install "worldenv[gymnasium]".
"""

import argparse
from collections import defaultdict

import torch

from worldenv.envs.gymnasium_env import WorldModelVectorEnv
from worldenv.envs.world_model_env import EnvConfig
from worldenv.job import make_env, practice_starts
from worldenv.records.model_files import Models, shipped
from worldenv.rollout.memory import keep_freed_memory
from worldenv.suites.tabletop.scenes import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60, help="chunks of actions")
    parser.add_argument("--chunk", type=int, default=4, help="actions per step, of the four that the policy plans")
    args = parser.parse_args()
    keep_freed_memory()
    models = Models.load(shipped())
    config = EnvConfig(envs=args.num_envs, chunk=args.chunk)
    envs = WorldModelVectorEnv(make_env(models, practice_starts(0), config))
    scores = defaultdict(list)
    observation, info = envs.reset(seed=0)
    for _ in range(args.steps):
        with torch.no_grad():
            mu, _ = models.policy(observation["frame"], observation["proprio"], observation["instruction"])
        observation, reward, terminated, truncated, info = envs.step(mu[:, : args.chunk])
        for slot in (terminated | truncated).nonzero()[:, 0].tolist():
            start, steps = (int(info["final_info"][name][slot]) for name in ("start", "steps"))
            task = start % len(TASKS)  # the starts have the tasks in turn
            scores[task].append((float(reward[slot]), bool(terminated[slot]), steps))
    envs.close()
    print(f"{'instruction':42} episodes  mean reward  stopped as done  mean steps")
    for task in sorted(scores):
        rewards, stopped, steps = zip(*scores[task], strict=True)
        count = len(rewards)
        print(
            f"{TASKS[task].instructions[0]:42} {count:8}  {sum(rewards) / count:11.2f}  "
            f"{100 * sum(stopped) / count:13.0f} %  {sum(steps) / count:10.1f}"
        )


if __name__ == "__main__":
    main()
