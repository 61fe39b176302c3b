"""PPO in one file, in the manner of CleanRL, on imagined episodes: python examples/cleanrl_ppo.py

Nothing in the loop knows that the episodes are imagined: it sees a Gymnasium vector environment. The actor begins as
the shipped policy, whose encoder stays as it is; the critic begins from scratch. With the defaults it practises from
two start states of each task, so that a minute shows something; --starts 960 --iterations 42 is the real thing.
Needs pip install "worldenv[gymnasium]".
"""

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import worldenv


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=10, help="chunks of actions per iteration")
    parser.add_argument("--iterations", type=int, default=18)
    parser.add_argument("--starts", type=int, default=20, help="start states to practise from, the tasks in turn")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--critic-only", type=int, default=2, help="first iterations, in which the actor is left alone")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--horizon", type=int, default=40, help="actions per episode")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Agent(nn.Module):
    def __init__(self, policy: worldenv.LaplacePolicy, texts: Sequence[str]):
        super().__init__()
        self.policy, self.instructions = policy, policy.read(texts)
        width = self.policy.config.width + 7
        self.critic = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 1))

    @torch.no_grad()
    def read(self, observation: dict[str, Tensor]) -> Tensor:  # [E, D]
        return self.policy.see(worldenv.Observation(**observation, camera=None), self.instructions)

    def distribution(self, feature: Tensor, proprio: Tensor) -> torch.distributions.Laplace:
        mu, beta = self.policy.heads(feature, proprio)
        return torch.distributions.Laplace(mu, beta.exp(), validate_args=False)

    def value(self, feature: Tensor, proprio: Tensor) -> Tensor:  # [B]
        return self.critic(torch.cat([feature, proprio], dim=-1))[:, 0]


def advantages(reward: Tensor, done: Tensor, value: Tensor, last_value: Tensor, gae_lambda: float) -> Tensor:
    """Generalised advantages [T, E], undiscounted. An episode that is truncated was paid at the horizon: it is over."""
    out, running = torch.zeros_like(reward), torch.zeros_like(last_value)
    for t in reversed(range(len(reward))):
        going_on = 1 - done[t].float()
        running = reward[t] + going_on * last_value - value[t] + gae_lambda * going_on * running
        out[t], last_value = running, value[t]
    return out


def main() -> list[float]:
    args = flags()
    worldenv.keep_freed_memory()
    torch.manual_seed(args.seed)
    parts = worldenv.load()
    starts = worldenv.practice_starts(parts.suite, args.seed).pick(torch.arange(args.starts))
    config = worldenv.EnvConfig(envs=args.num_envs, horizon=args.horizon)
    envs = worldenv.WorldModelVectorEnv(worldenv.make_env(parts, starts, config))
    agent = Agent(parts.policy, starts.texts)
    learnt = [*agent.policy.trainable(), *agent.critic.parameters()]
    optimizer = torch.optim.Adam(learnt, lr=args.learning_rate, eps=1e-5)

    observation, _ = envs.reset(seed=args.seed)
    began, means = time.perf_counter(), []
    for iteration in range(args.iterations):
        agent.eval()
        kept = {name: [] for name in ("feature", "proprio", "action", "log_prob", "value", "reward", "done")}
        returns, stops = [], []
        for _ in range(args.num_steps):
            feature, proprio = agent.read(observation), observation["proprio"]
            with torch.no_grad():
                distribution, value = agent.distribution(feature, proprio), agent.value(feature, proprio)
            action = distribution.sample()
            observation, reward, terminated, truncated, info = envs.step(action)
            done, log_prob = terminated | truncated, distribution.log_prob(action).sum((1, 2))
            for name, tensor in zip(kept, (feature, proprio, action, log_prob, value, reward, done), strict=True):
                kept[name].append(tensor)
            if "final_info" in info:
                returns += info["final_info"]["score"][done].tolist()
                stops += terminated[done].tolist()
        kept = {name: torch.stack(tensors) for name, tensors in kept.items()}
        with torch.no_grad():
            last_value = agent.value(agent.read(observation), observation["proprio"])
        kept["advantage"] = advantages(kept["reward"], kept["done"], kept["value"], last_value, args.gae_lambda)
        kept["target"] = kept["advantage"] + kept["value"]
        flat = {name: tensor.flatten(0, 1) for name, tensor in kept.items()}
        learn(agent, optimizer, flat, args, act=iteration >= args.critic_only)
        means.append(sum(returns) / max(1, len(returns)))
        print(
            f"iteration {iteration + 1:3}: {len(returns):4} episodes, mean return {means[-1]:.3f}, "
            f"stopped as done {100 * sum(stops) / max(1, len(stops)):.0f} %, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
    few = max(1, args.iterations // 4)
    print(
        f"mean return of the first {few} iterations {sum(means[:few]) / few:.3f}, "
        f"of the last {few} {sum(means[-few:]) / few:.3f}"
    )
    return means


def learn(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], args, act: bool) -> None:
    """PPO's clipped objective and the critic's squared error, in shuffled minibatches."""
    count = len(batch["action"])
    for _ in range(args.epochs):
        for part in torch.randperm(count).chunk(args.minibatches):
            b = {name: tensor[part] for name, tensor in batch.items()}
            loss = 0.5 * (agent.value(b["feature"], b["proprio"]) - b["target"]).square().mean()
            if act:
                log_prob = agent.distribution(b["feature"], b["proprio"]).log_prob(b["action"]).sum((1, 2))
                ratio = (log_prob - b["log_prob"]).exp()
                gain = (b["advantage"] - b["advantage"].mean()) / (b["advantage"].std(correction=0) + 1e-8)
                loss = loss - torch.min(ratio * gain, ratio.clamp(1 - args.clip, 1 + args.clip) * gain).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


if __name__ == "__main__":
    main()
