"""The causal world model: observation and actions in, frames out; the past is in the ring of each slot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.world import Imagined
from worldenv.ops.action_map import action_map
from worldenv.ops.constants import constant
from worldenv.ops.denoise_step import denoise_step
from worldenv.ops.philox import Use, philox
from worldenv.records.model_files import load_model
from worldenv.robot.hand import cameras_after, drawn_poses
from worldenv.robot.robot import Robot
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.ring import Ring
from worldenv.worlds.kinematics import with_kept
from worldenv.worlds.levels import check_levels, levels_of

LEVELS = (1.0, 0.5)  # noise levels t of the passes over a chunk


class CausalWorld:
    """A world model of one view whose network reads the past from a ring, so no past frame is computed again."""

    def __init__(self, network: CausalNetwork, robot: Robot, levels: Sequence[float] = LEVELS, view: str = "agentview"):
        if robot.kinematics is None or robot.gripper is None:
            raise UserError("the causal world model needs a robot with kinematics and a gripper; choose another one")
        config = network.config
        self.network, self.robot, self.levels = network, robot, check_levels(levels)
        self.views, self.size, self.chunk = (view,), (config.image_size, config.image_size), config.chunk

    @classmethod
    def load(cls, path: Path, robot: Robot, view: str = "agentview") -> "CausalWorld":
        """From a file of the kind "causal" with the noise levels and, if they were fitted, the kinematics."""
        network, about = load_model(path, "causal", CausalNetwork, CausalConfig)
        return cls(network, with_kept(path, about, robot), levels_of(path, about), view)

    @property
    def device(self) -> torch.device:
        return self.network.time_angle.device

    @torch.no_grad()
    def begin(self, seen: Observation, chunk: int) -> Ring:
        """The rings of episodes that begin with this observation.

        Raises UserError for chunks that are not whole passes: a pass overwrites the oldest frames in the ring, so it
        cannot be repeated.
        """
        if chunk % self.chunk:
            raise UserError(
                f"this world model imagines {self.chunk} frames per pass; a chunk should be a multiple of that, not "
                f"{chunk}"
            )
        if seen.camera is None:
            raise UserError("the causal world model draws the gripper; the observation has no camera matrix")
        frames, network = seen.frames[:, 0], self.network
        ring, latents = network.new_ring(len(frames)), network.tokenizer.encode(frames)
        zero = torch.zeros(len(frames), dtype=torch.int32, device=frames.device)
        condition = self.condition(seen.proprio[:, None], seen.camera)
        network.remember(latents, condition, ring, zero, zero, zero + latents.shape[1])
        return replace(ring, motion=self.robot.kinematics.rest(seen.proprio))

    @torch.no_grad()
    def imagine(self, memory: Ring, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """Imagine one chunk of one or more passes."""
        proprio, motion = self.robot.kinematics.follow(seen.proprio, memory.motion, action)
        if motion is not None:
            memory.motion.copy_(motion)
        cameras = cameras_after(seen.camera, seen.proprio, proprio, self.views, self.robot.hand_views)
        passes = action.shape[1] // self.chunk
        out = []
        for i, poses in enumerate(proprio.split(self.chunk, dim=1)):
            part = slice(i * self.chunk, (i + 1) * self.chunk)
            condition = self.condition(poses, seen.camera if cameras is None else cameras[:, part])
            out.append(self._pass(memory, condition, key._replace(chunk=key.chunk * passes + i)))
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in out])
        latents = torch.cat(out, dim=1).view(len(action), -1, self.network.config.tokens, out[0].shape[-1])
        pictures = self._shown(latents, seen.frames)[:, :, None]
        return Imagined(pictures, proprio, finite.all(0), camera=cameras)

    def _pass(self, ring: Ring, condition: Tensor, key: Key) -> Tensor:  # [B, K L, C]
        """The latents of K frames; the ring moves on."""
        config, network = self.network.config, self.network
        tokens, rooms = config.tokens * config.chunk, config.window // config.chunk + 1
        place = (config.tokens + key.chunk % rooms * tokens).int()
        length = (config.tokens + (key.chunk + 1).clamp(max=rooms) * tokens).int()
        here = ring, place, (1 + key.chunk * config.chunk).int(), length
        x = philox(*key, Use.FRAME, (tokens, config.channels), normal=True).to(condition.dtype)
        for step, (t, t_next) in enumerate(zip(self.levels, (*self.levels[1:], 0.0), strict=True)):
            velocity = network.velocity(x, x.new_full((len(x),), t), condition, *here)
            x = self._onward(x, velocity, t, t_next, key, step)
        network.remember(x, condition, *here)
        return x

    def _onward(self, noisy: Tensor, velocity: Tensor, t: float, t_next: float, key: Key, step: int) -> Tensor:
        """The latents at the next noise level, with fresh noise: as students of few steps are trained."""
        return denoise_step(noisy, velocity, t, t_next, *key, Use.AGAIN + step)

    def _shown(self, latents: Tensor, frames: Tensor) -> Tensor:  # [B, K, L, C], [B, 1, H, W, 3] -> [B, K, H, W, 3]
        """The pictures of a chunk; `frames` is the one that it began with."""
        pictures = self.network.tokenizer.decode(latents.flatten(0, 1), self.size[1])
        return pictures.unflatten(0, latents.shape[:2])

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The tokenizer's encoder and decoder, and one denoising step. Raises UserError for rings of int8."""
        config, network = self.network.config, self.network
        if config.cache == "int8":
            raise UserError("a step over a ring of int8 has no export: its levels are rounded otherwise elsewhere")
        rooms, tokens = config.window // config.chunk + 1, config.tokens * config.chunk

        def given(rows: int) -> dict[str, Tensor]:
            shape = rows, config.layers, config.key_heads, config.places, config.head
            chunk = torch.arange(rows, dtype=torch.int32)
            return {
                "latents": torch.randn(rows, tokens, config.channels),
                "noise_level": torch.rand(rows),
                "condition": torch.randn(rows, tokens, config.width),
                "keys": torch.randn(shape),
                "values": torch.randn(shape),
                "place": config.tokens + chunk % rooms * tokens,
                "frame": 1 + chunk * config.chunk,
                "length": config.tokens + (chunk + 1).clamp(max=rooms) * tokens,
            }

        def step(
            latents: Tensor, level: Tensor, condition: Tensor, keys: Tensor, values: Tensor, *at: Tensor
        ) -> Tensor:
            scales = keys.new_empty(keys.shape[0], config.layers, config.key_heads, 0)
            ring = Ring(keys.clone(), values.clone(), scales, scales)
            return network.velocity(latents, level, condition, ring, *at)

        coders = network.tokenizer.pieces(self.size)
        return coders | {"denoising-step": Piece(network, step, given, ("velocity",))}

    def condition(self, poses: Tensor, camera: Tensor) -> Tensor:  # [B, N, P], as `draw_maps` -> [B, N L, D]
        """The conditioning of every token of N frames on the gripper."""
        return self.network.condition(draw_maps(poses, camera, self.robot, self.network.config), poses)


def draw_maps(poses: Tensor, camera: Tensor, robot: Robot, config: CausalConfig) -> Tensor:
    """The action maps [B, N, 4, h, w] of poses [B, N, P] as cameras see them, shrunk for the network.

    The first of cameras [B, V, 3, 4]; [B, N, V, 3, 4] where they move.
    """
    (b, n, _), size = poses.shape, config.image_size // config.map_shrink
    shrunk = camera * constant(((1 / config.map_shrink,), (1 / config.map_shrink,), (1.0,)), camera)  # pixel axes
    cameras = shrunk.repeat_interleave(n, 0) if camera.ndim == 4 else shrunk.flatten(0, 1)
    maps = action_map(drawn_poses(poses.flatten(0, 1), robot), cameras, robot.gripper, size, size)
    return maps[:, 0].unflatten(0, (b, n))
