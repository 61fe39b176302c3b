"""Imagined episodes in TorchRL's hands, its check and a rollout: python examples/torchrl_rollout.py

Needs pip install "worldenv[torchrl]".
"""

import argparse

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

import worldenv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30, help="chunks of actions")
    args = parser.parse_args()
    worldenv.keep_freed_memory()
    parts = worldenv.load()
    starts = worldenv.practice_starts(parts.suite, 0)
    inner = worldenv.TorchRLWorldModelEnv(worldenv.make_env(parts, starts, worldenv.EnvConfig(envs=args.num_envs)))
    check_env_specs(inner, seed=0)
    env = TransformedEnv(inner, RewardSum())
    policy, read = parts.policy, parts.policy.read(starts.texts)

    def act(frames: Tensor, proprio: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # mean and log-scale, [E, 4, 7]
        return policy.heads(policy.see(worldenv.Observation(frames, proprio, None, text), read), proprio)

    actor = TensorDictModule(act, in_keys=["frames", "proprio", "text"], out_keys=["action", "log_scale"])
    env.set_seed(0)
    with torch.no_grad():
        data = env.rollout(args.steps, actor, break_when_any_done=False)
    after = data["next"]
    done, stopped = after["done"], after["terminated"]
    returns = after["episode_reward"][done]
    print(data.select("frames", "proprio", "text", "action", "next"))
    print(
        f"{int(done.sum())} episodes ended: mean return {returns.mean():.3f}, "
        f"stopped as done {100 * stopped[done].float().mean():.0f} %, "
        f"broken {int(after['broken'].sum())}"
    )


if __name__ == "__main__":
    main()
