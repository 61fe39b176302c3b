"""Imagined episodes in TorchRL's hands, its check and a rollout: python examples/torchrl_rollout.py

Needs pip install "worldenv[torchrl]".
"""

import argparse

import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

from worldenv.envs.torchrl_env import TorchRLWorldModelEnv
from worldenv.envs.world_model_env import EnvConfig
from worldenv.job import make_env, practice_starts
from worldenv.records.model_files import Models, shipped
from worldenv.rollout.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30, help="chunks of actions")
    args = parser.parse_args()
    keep_freed_memory()
    models = Models.load(shipped())
    inner = TorchRLWorldModelEnv(make_env(models, practice_starts(0), EnvConfig(envs=args.num_envs)))
    check_env_specs(inner, seed=0)
    env = TransformedEnv(inner, RewardSum())
    policy = TensorDictModule(
        models.policy, in_keys=["frame", "proprio", "instruction"], out_keys=["action", "log_scale"]
    )
    env.set_seed(0)
    with torch.no_grad():
        data = env.rollout(args.steps, policy, break_when_any_done=False)
    after = data["next"]
    done, stopped = after["done"], after["terminated"]
    returns = after["episode_reward"][done]
    print(data.select("frame", "proprio", "instruction", "action", "next"))
    print(
        f"{int(done.sum())} episodes ended: mean return {returns.mean():.3f}, "
        f"stopped as done {100 * stopped[done].float().mean():.0f} %, "
        f"broken {int(after['broken'].sum())}"
    )


if __name__ == "__main__":
    main()
