"""The loop that every user of Gymnasium has, on imagined episodes: python examples/gymnasium_loop.py

Needs pip install "worldenv[gymnasium]".
"""

import argparse
from collections import defaultdict

import worldenv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60, help="chunks of actions")
    parser.add_argument("--chunk", type=int, default=4, help="actions per step, of the four that the policy plans")
    args = parser.parse_args()
    worldenv.keep_freed_memory()
    parts = worldenv.load()
    starts, policy, tasks = worldenv.practice_starts(parts.suite, 0), parts.policy, parts.suite.tasks
    config = worldenv.EnvConfig(envs=args.num_envs, chunk=args.chunk)
    envs = worldenv.WorldModelVectorEnv(worldenv.make_env(parts, starts, config))
    scores, read = defaultdict(list), policy.read(starts.texts)
    observation, info = envs.reset(seed=0)
    for _ in range(args.steps):
        seen = worldenv.Observation(**observation, camera=None)
        key = worldenv.Key(0, info["id"], info["steps"] // args.chunk)  # what a draw depends on; the mean needs none
        action = policy.act(seen, read, key, explore=False).action
        observation, reward, terminated, truncated, info = envs.step(action[:, : args.chunk])
        for slot in (terminated | truncated).nonzero()[:, 0].tolist():
            start, steps = (int(info["final_info"][name][slot]) for name in ("start", "steps"))
            task = start % len(tasks)  # the starts have the tasks in turn
            scores[task].append((float(reward[slot]), bool(terminated[slot]), steps))
    envs.close()
    print(f"{'instruction':42} episodes  mean reward  stopped as done  mean steps")
    for task in sorted(scores):
        rewards, stopped, steps = zip(*scores[task], strict=True)
        count = len(rewards)
        print(
            f"{tasks[task].instructions[0]:42} {count:8}  {sum(rewards) / count:11.2f}  "
            f"{100 * sum(stopped) / count:13.0f} %  {sum(steps) / count:10.1f}"
        )


if __name__ == "__main__":
    main()
