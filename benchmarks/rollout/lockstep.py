"""The rival of the engine: the usual loop in plain PyTorch.

All episodes run in one batch to the horizon, even if the reflector has stopped them. Random numbers are torch's own,
and no compiled op of this package is used.
"""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv import ops
from worldenv.assemble import Parts
from worldenv.interfaces.observation import Starts
from worldenv.nn.instruction import tokenize
from worldenv.nn.int8 import Conv, Linear
from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.laplace_chunk import LARGEST, laplace_log_prob
from worldenv.ops.patchify import PATCH, unit
from worldenv.ops.philox import Use, philox
from worldenv.ops.unpatchify import to_frames, unpatchify
from worldenv.robot.kinematics import chunk_kinematics
from worldenv.rollout.engine import Engine
from worldenv.worlds.composer.contact import Scene, follow
from worldenv.worlds.composer.layer import POSITION
from worldenv.worlds.composer.network import Seen
from worldenv.worlds.composer.sampler import sample
from worldenv.worlds.composer.world import Memory


class Half(nn.Module):
    """A `Conv` or `Linear` that multiplies in bfloat16 and takes and gives float32, as autocast has it."""

    def __init__(self, layer: Conv | Linear):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.bfloat16(), requires_grad=False)
        self.multiply = (
            F.linear if isinstance(layer, Linear) else partial(F.conv2d, stride=layer.stride, padding=layer.padding)
        )

    def forward(self, x: Tensor, relu: bool = False, onto: Tensor | None = None) -> Tensor:
        y = self.multiply(unit(x).bfloat16(), self.weight, self.bias).float()
        y = F.relu(y) if relu else y
        return y if onto is None else onto + y


def in_bfloat16(parts: Parts) -> Parts:
    """The parts with copies of the models whose convolutions and linear layers multiply in bfloat16."""
    half = replace(parts, **{name: copy.deepcopy(getattr(parts, name)) for name in ("policy", "world", "reflector")})
    for network in half.networks().values():
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Conv | Linear):
                    setattr(parent, name, Half(child))
    return half


def laplace_sample(mu: Tensor, beta: Tensor, uniform: Tensor) -> Tensor:
    """A draw from Laplace(mu, exp(beta)) by inversion of a uniform number."""
    u = uniform - 0.5
    return mu - torch.exp(beta) * u.sign() * torch.log1p(-2 * u.abs().clamp(max=LARGEST))


class Lockstep:
    """`run` returns frames [E, T * K + 1, 1, H, W, 3], rewards [E, T * K] and actions [E, T, K, 7] of E episodes."""

    def __init__(self, engine: Engine, compiled: bool = False):
        self.engine = engine
        self.step = torch.compile(self._step) if compiled else self._step

    def _step(
        self,
        memory: Memory,  # moved on in place
        frame: Tensor,
        proprio: Tensor,
        tokens: Tensor,
        camera: Tensor,
        first: Tensor,
        total: Tensor,
        count: int,
        uniform: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, ...]:
        policy, world, reflector = self.engine.policy, self.engine.world, self.engine.reflector
        mu, beta = policy(frame, proprio, tokens)
        action = laplace_sample(mu, beta, uniform)
        log_prob = laplace_log_prob(action, mu, beta)
        poses = torch.cat([proprio[:, None], chunk_kinematics(proprio, action, world.robot.kinematics)], dim=1)
        b, n = poses.shape[:2]
        seen = self._see(memory, frame, poses, camera)
        frames, _ = unpatchify(sample(world.network, seen, noise, world.levels))
        feature = reflector.encode(frames.flatten(0, 1), tokens.repeat_interleave(n - 1, 0)).unflatten(0, (b, n - 1))
        total = total[:, None] + feature.cumsum(1)
        mean = total / (count + torch.arange(1, n))[:, None]
        reward = torch.sigmoid(reflector.logit(feature, first[:, None], mean))
        return poses[:, -1], total[:, -1], frames, reward, action, log_prob

    def _see(self, memory: Memory, frame: Tensor, poses: Tensor, camera: Tensor) -> Seen:
        """What the gripper moves, and what is known of the chunk."""
        network, robot, layer = self.engine.world.network, self.engine.world.robot, memory.layer
        scene = Scene(to_frames(network.plate[None, :, :, None])[0, 0], robot)
        course = follow(network.contact, layer, frame, poses, camera[:, 0], scene)
        places = torch.cat([layer.thing.origin[:, None], course.places], dim=1)
        tips = torch.cat([memory.tips[:, None], poses[..., POSITION]], dim=1)
        known = memory.first, course.frame, layer.scene(camera[:, 0], scene.plate), layer.thing.mask, course.hidden
        return network.see(known_pictures(*known, tips, places, camera, network.plate), poses, camera, robot.gripper)

    @torch.no_grad()
    def run(self, starts: Starts, seed: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """With a seed the random numbers are those of the engine's episodes 0, 1 ...; without one torch's."""
        before, ops.BACKEND = ops.BACKEND, "reference"
        try:
            return self._run(starts, seed)
        finally:
            ops.BACKEND = before

    def _draw(self, episodes: int, chunk: int, seed: int | None) -> tuple[Tensor, Tensor]:
        """Uniform [E, K, 7] and noise [E, H / 2, W / 2, K, 12]."""
        k, (height, width) = self.engine.world.chunk, self.engine.world.size
        shapes = (k, 7), (height // 2, width // 2, k, PATCH)
        if seed is None:
            return torch.rand(episodes, *shapes[0]), torch.randn(episodes, *shapes[1])
        ids = torch.arange(episodes)
        where = seed, ids, torch.full_like(ids, chunk)
        return philox(*where, Use.ACTION, shapes[0]), philox(*where, Use.FRAME, shapes[1], normal=True)

    def _run(self, starts: Starts, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        k, seen, tokens = self.engine.world.chunk, starts.seen, tokenize(starts.instructions)
        frame, proprio = seen.frames[:, 0], seen.proprio
        memory = self.engine.world.begin(seen, k)
        first = total = self.engine.reflector.encode(frame, tokens)
        video, rewards, actions = [frame[:, None]], [], []
        for chunk in range(self.engine.horizon):
            numbers = self._draw(len(proprio), chunk, seed)
            proprio, total, frames, reward, action, _ = self.step(
                memory, frame, proprio, tokens, seen.camera, first, total, 1 + chunk * k, *numbers
            )
            frame = frames[:, -1]
            video.append(frames)
            rewards.append(reward)
            actions.append(action)
        return torch.cat(video, dim=1)[:, :, None], torch.cat(rewards, dim=1), torch.stack(actions, dim=1)
