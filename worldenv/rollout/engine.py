"""Imagine many episodes at once: policy, kinematics, world simulator and reflector, one chunk at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldenv.camera import Camera
from worldenv.errors import UserError
from worldenv.kinematics import Kinematics, chunk_kinematics
from worldenv.ops.action_map import action_map
from worldenv.policy.network import Policy, laplace_log_prob, laplace_sample
from worldenv.reflector.network import Pooled, Reflector
from worldenv.rollout.draws import Use, normal, uniform
from worldenv.rollout.episodes import Rollouts, Starts
from worldenv.simulator.network import Simulator
from worldenv.simulator.sampler import sample
from worldenv.simulator.transport import transport
from worldenv.vision import to_float


@dataclass(frozen=True)
class EngineConfig:
    horizon: int = 10  # T, chunks per episode
    batch: int = 24  # episodes per network pass; more activations than this leave the cache of a CPU

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.batch < 1:
            raise UserError(f"horizon and batch must be positive: {self}")


@dataclass
class _Live:
    """The episodes still running: their memory frames, poses and what the reflector remembers."""

    index: Tensor  # [B] int64, row in the rollouts
    first: Tensor  # [B, H, W, 3] uint8
    previous: Tensor  # [B, H, W, 3] uint8, one chunk ago
    last: Tensor  # [B, H, W, 3] uint8
    proprio: Tensor  # [B, 7]
    tokens: Tensor  # [B, L]
    pooled: Pooled

    def keep(self, mask: Tensor) -> "_Live":
        rows = (self.index, self.first, self.previous, self.last, self.proprio, self.tokens)
        return _Live(*(row[mask] for row in rows), self.pooled.keep(mask))


class Engine:
    """`run` imagines G siblings of every start until the reflector stops them or the horizon is reached.

    Randomness is counter-based, so an episode does not depend on the batch it runs in, up to rounding.
    """

    def __init__(
        self,
        policy: Policy,
        simulator: Simulator,
        reflector: Reflector,
        camera: Camera,
        kinematics: Kinematics,
        levels: Sequence[float],  # noise levels of the sampler
        config: EngineConfig,
    ):
        if policy.config.chunk != simulator.config.chunk:
            raise UserError(
                f"policy acts in chunks of {policy.config.chunk}, the simulator in chunks of {simulator.config.chunk}"
            )
        self.policy, self.simulator, self.reflector = policy, simulator, reflector
        self.kinematics, self.levels, self.config = kinematics, tuple(levels), config
        self.projection, self.size = torch.from_numpy(camera.projection), camera.height

    @torch.no_grad()
    def run(
        self,
        starts: Starts,
        siblings: int,  # G
        seed: int,
        first_episode: int = 0,  # id of the first episode: distinct ids give distinct randomness
        explore: bool = True,  # False: the mean action
        stop: bool = True,  # False: go on to the horizon whatever the reflector says
        video: bool = False,
    ) -> Rollouts:
        """The finished rollouts, siblings of one start next to each other."""
        starts = starts.pick(torch.arange(len(starts)).repeat_interleave(siblings))
        out = Rollouts.empty(starts, self.config.horizon, self.policy.config.chunk, video)
        for rows in torch.arange(len(starts)).split(self.config.batch):
            part = starts.pick(rows)
            pooled = self.reflector.begin(part.frame, part.tokens)
            live = _Live(rows, part.frame, part.frame, part.frame, part.proprio, part.tokens, pooled)
            if video:
                out.video[rows, 0] = part.frame
            for chunk in range(self.config.horizon):
                live = self.step(live, chunk, out, seed, first_episode, explore, stop)
                if not len(live.index):
                    break
        return out

    def step(
        self, live: _Live, chunk: int, out: Rollouts, seed: int, first_episode: int, explore: bool, stop: bool
    ) -> _Live:
        """One chunk for every live episode; returns those that go on."""
        rows, k = live.index, self.policy.config.chunk
        mu, beta = self.policy(live.last, live.proprio, live.tokens)
        action = (
            laplace_sample(mu, beta, uniform(seed, rows + first_episode, chunk, Use.ACTION, mu.shape[1:]))
            if explore
            else mu
        )
        poses = torch.cat([live.proprio[:, None], chunk_kinematics(live.proprio, action, self.kinematics)], dim=1)
        noise = normal(seed, rows + first_episode, chunk, Use.FRAME, (k, 3, self.size, self.size))
        frames, drawn = self.imagine(live, poses, noise)
        reward = self.reflector.judge(frames, live.tokens, live.pooled)
        out.frame[rows, chunk], out.proprio[rows, chunk], out.action[rows, chunk] = live.last, live.proprio, action
        out.log_prob[rows, chunk] = laplace_log_prob(action, mu, beta)
        out.reward[rows, chunk], out.chunks[rows] = reward, chunk + 1
        if out.video is not None:
            out.video[rows, chunk * k + 1 : (chunk + 1) * k + 1] = frames
        finite = torch.isfinite(action).all(2).all(1) & torch.isfinite(reward).all(1) & drawn
        out.broken[rows] |= ~finite
        done = (reward > self.reflector.config.threshold) & finite[:, None]  # a broken episode is no success
        newly = done.any(1) & ~out.stopped[rows]
        out.stop[rows] = torch.where(newly, chunk * k + 1 + done.int().argmax(1), out.stop[rows])
        out.stopped[rows] |= newly
        live.previous, live.last, live.proprio = live.last, frames[:, -1], poses[:, -1]
        return live.keep(finite & ~done.any(1) if stop else finite)

    @torch.no_grad()
    def replay(
        self,
        starts: Starts,
        poses: Tensor,  # [N, T * K + 1, 7] float32, the present pose first
        seed: int,
    ) -> Tensor:  # [N, T * K + 1, H, W, 3] uint8, the start frame first
        """Imagine what the camera would see if the gripper went through these poses; no policy, no stop."""
        k, out = self.policy.config.chunk, []
        for rows in torch.arange(len(starts)).split(self.config.batch):
            part = starts.pick(rows)
            pooled = Pooled(*torch.zeros(3, len(rows), 1))
            live = _Live(rows, part.frame, part.frame, part.frame, part.proprio, part.tokens, pooled)
            frames = [part.frame[:, None]]
            for chunk in range((poses.shape[1] - 1) // k):
                noise = normal(seed, rows, chunk, Use.FRAME, (k, 3, self.size, self.size))
                frames.append(self.imagine(live, poses[rows, chunk * k : (chunk + 1) * k + 1], noise)[0])
                live.previous, live.last = live.last, frames[-1][:, -1]
            out.append(torch.cat(frames, dim=1))
        return torch.cat(out)

    def imagine(
        self,
        live: _Live,
        poses: Tensor,  # [B, K + 1, 7] float32, the present one first
        noise: Tensor,  # [B, K, 3, H, W] float32, standard normal
    ) -> tuple[Tensor, Tensor]:  # [B, K, H, W, 3] uint8; [B] bool, whether every pixel came out finite
        """The frames that follow when the gripper goes through `poses`."""
        b, n = poses.shape[:2]
        memory = torch.stack([to_float(frame) for frame in (live.first, live.previous, live.last)], dim=1)
        maps = action_map(poses.flatten(0, 1), self.projection, self.size, self.size).unflatten(0, (b, n))
        seen = self.simulator.see(memory, transport(memory[:, -1], poses, self.projection), maps, poses)
        frames = sample(self.simulator, seen, noise, self.levels)
        pixels = frames.nan_to_num().add(1).mul(127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
        return pixels, torch.isfinite(frames).flatten(1).all(1)
