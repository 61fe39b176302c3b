"""A video-diffusion U-Net behind the interface `WorldModel`: the past is the latents of some frames."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.suite import Suite
from worldenv.interfaces.world import Imagined
from worldenv.ops.action_map import CHANNELS as MAP_CHANNELS
from worldenv.ops.philox import Use, philox
from worldenv.records.released import folder_of, settings_in
from worldenv.worlds.conditioning import FrameEncoder
from worldenv.worlds.video.folder import inspect_video, read_video, write_video
from worldenv.worlds.video.network import Known, VideoConfig, VideoUNet


@dataclass
class VideoMemory(Slots):
    """What a pass knows of E episodes: the first frame and the latest ones, as latents, and what encoders saw."""

    latents: Tensor  # [E, M, C, h, w]
    poses: Tensor  # [E, M, P] float32
    tokens: Tensor  # [E, L, D], of the first frame
    motion: Tensor | None  # [E, P] float32, of an arm that coasts


class VideoWorld:
    """A pass denoises the K frames of a chunk together; the policy's chunk may be several passes long."""

    def __init__(self, network: VideoUNet, view: str = "agentview", folder: Path | None = None):
        config = network.config
        self.network, self.robot, self.config, self.folder = network, network.robot, config, folder
        self.views, self.size, self.chunk = (view,), (config.size, config.size), config.chunk

    @property
    def device(self) -> torch.device:
        return self.network.place.device

    @torch.no_grad()
    def begin(self, seen: Observation, chunk: int) -> VideoMemory:
        """The memory of episodes that begin with this observation. The encoders look at it now, and never again.

        Raises UserError for chunks that are not whole passes, and without a camera matrix.
        """
        if chunk % self.chunk:
            raise UserError(
                f"this world model imagines {self.chunk} frames per pass; a chunk should be a multiple of that, not "
                f"{chunk}"
            )
        if seen.camera is None:
            raise UserError("the world model draws the gripper; the observation has no camera matrix")
        network, frames, m = self.network, seen.frames[:, 0], self.config.memory
        latents = network.tokenizer.encode(frames)[:, None].repeat(1, m, 1, 1, 1)
        empty = network.place.new_empty(len(frames), 0, network.place.shape[1])
        tokens = torch.cat([empty, *network.conditioning.tokens(network.conditioning.features(frames))], dim=1)
        motion = self.robot.kinematics.rest(seen.proprio)
        return VideoMemory(latents, seen.proprio[:, None].repeat(1, m, 1), tokens, motion)

    @torch.no_grad()
    def imagine(self, memory: VideoMemory, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """Imagine one chunk of one or more passes."""
        action = action.clamp(-1, 1)
        proprio, motion = self.robot.kinematics.follow(seen.proprio, memory.motion, action)
        if motion is not None:
            memory.motion.copy_(motion)
        passes, out, k = action.shape[1] // self.chunk, [], self.chunk
        for i in range(passes):
            part = slice(i * k, (i + 1) * k)
            poses = torch.cat([memory.poses, proprio[:, part]], dim=1)
            known = self.network.know(memory.latents, poses, seen.camera, action[:, part], [memory.tokens])
            new = self._pass(known, key._replace(chunk=key.chunk * passes + i))
            memory.latents[:, 1:] = torch.cat([memory.latents[:, 1:], new], dim=1)[:, 1 - self.config.memory :]
            memory.poses[:, 1:] = poses[:, 1 - self.config.memory :]
            out.append(new)
        latents = torch.cat(out, dim=1)
        finite = latents.isfinite().flatten(1).all(1)
        return Imagined(self._shown(latents, seen.frames)[:, :, None], proprio, finite)

    def _pass(self, known: Known, key: Key) -> Tensor:  # [B, K, C, h, w]
        """Euler steps of the probability flow from noise (Karras et al. 2022, algorithm 1 without noise added)."""
        sigmas = self.network.config.sigmas()
        past = known.latents
        noise = philox(*key, Use.FRAME, (self.chunk, *past.shape[2:]), normal=True)
        x = noise * sigmas[0]
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            clean = self.network.denoised(x, x.new_full((len(x),), sigma), known)
            x = clean + (after / sigma) * (x - clean)
        return x.to(past.dtype)

    def _shown(self, latents: Tensor, frames: Tensor) -> Tensor:  # [B, K, C, h, w], [B, 1, H, W, 3] -> [B, K, H, W, 3]
        b, k = latents.shape[:2]
        looked = latents if self.config.decode == "all" else latents[:, -1:]
        pictures = self.network.tokenizer.decode(looked.flatten(0, 1)).unflatten(0, (b, -1))
        return torch.cat([frames.expand(-1, k - pictures.shape[1], -1, -1, -1), pictures], dim=1)

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Encoder and decoder of the autoencoder, what sees the first picture, and one denoising step."""
        network, m, k = self.network, self.config.memory, self.chunk
        channels, sides = network.tokenizer.channels, [side // network.tokenizer.shrink for side in self.size]
        frame = torch.zeros(1, *self.size, 3, dtype=torch.uint8)
        features = network.conditioning.features(frame)
        length = k + sum(seen.shape[1] for seen in features.values())

        def noisy(rows: int) -> dict[str, Tensor]:
            latents, maps = torch.randn(rows, m + k, channels, *sides), torch.rand(rows, m + k, MAP_CHANNELS, *sides)
            context = torch.randn(rows, length, network.place.shape[1])
            given = {"noisy": latents[:, m:].contiguous(), "sigma": 0.1 + torch.rand(rows)}
            return given | {"latents": latents[:, :m].contiguous(), "maps": maps, "context": context}

        def step(noisy: Tensor, sigma: Tensor, *known: Tensor) -> Tensor:
            return network.denoised(noisy, sigma, Known(*known))

        out = network.tokenizer.pieces(self.size)
        for name, encoder in network.conditioning.encoders.items():
            shape = encoder.prepare(frame).shape[1:]
            drawn = partial(_pictures, shape)
            out[f"{name}-encoder"] = Piece(encoder, encoder.encode, drawn, ("features",))
        return out | {"denoising-step": Piece(network, step, noisy, ("clean",), most=63 // (m + k))}

    def write_back(self, folder: Path | str) -> Path:
        """Write the world model as it is now, in the layout in which it was loaded; see `write_video`."""
        if self.folder is None:
            raise UserError("this world model was made from parts, not from a folder; save its network yourself")
        return write_video(self.network, self.folder, folder)


def _pictures(shape: tuple[int, ...], rows: int) -> dict[str, Tensor]:
    return {"pictures": torch.randn(rows, *shape)}


def load_video(
    folder: Path | str,
    suite: Suite,
    config: VideoConfig | None = None,
    encoders: Mapping[str, FrameEncoder] | None = None,
) -> VideoWorld:
    """A world model from the folder of a pipeline: Stable Video Diffusion's, or one that `write_back` wrote.

    encoders: by names of your own, in the place of those in the folder. One that was written back with them is loaded
    with them. Raises UserError, before anything large is read, as `inspect_video` does.
    """
    if encoders is not None:
        config = settings_in(folder_of(folder), VideoConfig) if config is None else config
        config = replace(config, clip="none", geometry="none")
    found = inspect_video(folder, suite, config)
    return VideoWorld(read_video(found, encoders or {}), suite.views[0], found.folder)
