"""The rival of the engine: the loop that everyone writes, in plain PyTorch.

All episodes in one batch, chunk by chunk to the horizon, whether the reflector has stopped them or not; torch's own
random numbers; no compiled op of this package.
"""

import torch
from torch import Tensor

from worldenv import ops
from worldenv.kinematics import chunk_kinematics
from worldenv.ops.action_map import action_map
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.ops.patchify import PATCH
from worldenv.ops.transport import transport
from worldenv.ops.unpatchify import unpatchify
from worldenv.policy.network import laplace_sample
from worldenv.rollout.engine import Engine
from worldenv.rollout.episodes import Starts
from worldenv.simulator.sampler import sample


class Lockstep:
    """`run` returns frames [E, T * K + 1, H, W, 3], rewards [E, T * K] and actions [E, T, K, 7] of E episodes."""

    def __init__(self, engine: Engine, compiled: bool = False):
        self.engine = engine
        self.step = torch.compile(self._step) if compiled else self._step

    def _step(self, memory: Tensor, proprio: Tensor, tokens: Tensor, first: Tensor, total: Tensor, count: int,
              uniform: Tensor, noise: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        policy, world, reflector = self.engine.policy, self.engine.world, self.engine.reflector
        mu, beta = policy(memory[:, 2], proprio, tokens)
        action = laplace_sample(mu, beta, uniform)
        log_prob = laplace_log_prob(action, mu, beta)
        poses = torch.cat([proprio[:, None], chunk_kinematics(proprio, action, self.engine.kinematics)], dim=1)
        b, n = poses.shape[:2]
        maps = action_map(poses.flatten(0, 1), world.projection, world.size, world.size).unflatten(0, (b, n))
        seen = world.simulator.see(transport(memory, poses, world.projection), maps, poses)
        frames, _ = unpatchify(sample(world.simulator, seen, noise, world.levels))
        feature = reflector.encode(frames.flatten(0, 1), tokens.repeat_interleave(n - 1, 0)).unflatten(0, (b, n - 1))
        total = total[:, None] + feature.cumsum(1)
        mean = total / (count + torch.arange(1, n))[:, None]
        reward = torch.sigmoid(reflector.logit(feature, first[:, None], mean))
        memory = torch.stack([memory[:, 0], memory[:, 2], frames[:, -1]], dim=1)
        return memory, poses[:, -1], total[:, -1], frames, reward, action, log_prob

    @torch.no_grad()
    def run(self, starts: Starts, siblings: int, draw=None) -> tuple[Tensor, Tensor, Tensor]:
        """`draw(chunk)` gives uniform [E, K, 7] and noise [E, H / 2, W / 2, K, 12]; None: torch's generator."""
        before, ops.BACKEND = ops.BACKEND, "reference"
        try:
            return self._run(starts.pick(torch.arange(len(starts)).repeat_interleave(siblings)), draw or self._draw)
        finally:
            ops.BACKEND = before

    def _draw(self, episodes: int) -> tuple[Tensor, Tensor]:
        k, size = self.engine.world.chunk, self.engine.world.size // 2
        return torch.rand(episodes, k, 7), torch.randn(episodes, size, size, k, PATCH)

    def _run(self, starts: Starts, draw) -> tuple[Tensor, Tensor, Tensor]:
        k, horizon = self.engine.world.chunk, self.engine.config.horizon
        memory, proprio = torch.stack([starts.frame] * 3, dim=1), starts.proprio
        first = total = self.engine.reflector.encode(starts.frame, starts.tokens)
        video, rewards, actions = [starts.frame[:, None]], [], []
        for chunk in range(horizon):
            numbers = draw(len(proprio)) if draw == self._draw else draw(chunk)
            memory, proprio, total, frames, reward, action, _ = self.step(
                memory, proprio, starts.tokens, first, total, 1 + chunk * k, *numbers
            )
            video.append(frames)
            rewards.append(reward)
            actions.append(action)
        return torch.cat(video, dim=1), torch.cat(rewards, dim=1), torch.stack(actions, dim=1)
