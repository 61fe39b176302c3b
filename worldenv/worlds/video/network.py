"""The paper's kind of world model: a video-diffusion U-Net over memory frames and the frames of a chunk.

Input channels of every frame: its noisy latent, a known latent, whether it is known itself, and the action map. Tokens
for cross-attention: what frozen encoders see in the episode's first picture, and one of every action.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from worldenv.fields import COUNT, LARGEST, FieldError, Within, check_fields
from worldenv.ops.action_map import CHANNELS as MAP_CHANNELS
from worldenv.ops.action_map import action_map
from worldenv.ops.constants import constant
from worldenv.robot.hand import drawn_poses
from worldenv.robot.robot import Robot
from worldenv.worlds.conditioning import Conditioning
from worldenv.worlds.tokenizers import FrameTokenizer

ADDED = 1 + MAP_CHANNELS  # channels: mask and action map
TIME_IDS = (6.0, 127.0, 0.02)  # of Stable Video Diffusion: frames a second less 1, how much moves, noise on the picture
SCALES = (5, 5, 5, 1, 1, 1, 1)  # of the numbers of a pose: metres to numbers around 1


@dataclass(frozen=True)
class VideoConfig:
    """How such a model is used, and trained. It may lie in its folder as worldenv.json, with the fields that differ."""

    size: int = 256  # pixels of a side
    chunk: int = 8  # K, frames of a pass
    memory: int = 4  # M, frames that a pass knows: the first of the episode and the latest
    steps: int = 4  # denoising steps of a pass
    sigma_min: float = 0.002  # of the sampler's noise levels (Karras et al. 2022), as of Stable Video Diffusion
    sigma_max: float = 700.0
    rho: float = 7.0
    sigma_mean: float = 0.7  # of log sigma in training
    sigma_std: float = 1.6
    # image_encoder/: the tokens of the picture and its patches, that of the picture alone, or none.
    clip: Literal["all", "pooled", "none"] = "all"
    geometry: Literal["folder", "none"] = "folder"  # geometry/, where it is there
    geometry_size: int = 224  # pixels of the picture that it looks at
    # Frames of a chunk that are decoded. last: the one that the policy looks at; those before it repeat the picture
    # that the chunk began with.
    decode: Literal["all", "last"] = "all"
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"

    def __post_init__(self) -> None:
        size, level = Within(1, LARGEST), Within(0.0, 1e6, open_low=True)
        check_fields(
            self,
            size=size,
            chunk=COUNT,
            memory=Within(2, 1000),
            steps=Within(1, 1000),
            sigma_min=level,
            sigma_max=level,
            rho=level,
            sigma_mean=Within(-20.0, 20.0),
            sigma_std=Within(0.0, 20.0),
            geometry_size=size,
        )
        if not self.sigma_min < self.sigma_max:
            raise FieldError(f"sigma_min is {self.sigma_min}; it should be below sigma_max, {self.sigma_max}")

    def sigmas(self) -> list[float]:
        """Falling noise levels of the sampler, the last 0."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / max(1, self.steps - 1) * (low - high)) ** self.rho for i in range(self.steps)] + [0.0]


@dataclass(frozen=True)
class Known:
    """What a pass over K frames of B episodes is given."""

    latents: Tensor  # [B, M, C, h, w], clean
    maps: Tensor  # [B, M + K, 4, h, w] float32, action maps
    context: Tensor  # [B, L, D], tokens for cross-attention


class VideoUNet(nn.Module):
    """U-Net, autoencoder and conditioning. The autoencoder and the encoders are frozen."""

    def __init__(
        self,
        unet: nn.Module,  # diffusers' UNetSpatioTemporalConditionModel, of 2 C + ADDED channels
        tokenizer: FrameTokenizer,
        conditioning: Conditioning,
        config: VideoConfig,
        robot: Robot,
    ):
        super().__init__()
        self.unet, self.tokenizer, self.conditioning = unet, tokenizer, conditioning
        self.config, self.robot = config, robot
        width = cross_width(unet)
        numbers = robot.action_size + robot.proprio_size
        self.actions = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(config.chunk, width))

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def know(
        self,
        latents: Tensor,  # [B, M, C, h, w], of the memory frames
        poses: Tensor,  # [B, M + K, P] float32, of these and of the frames to come
        camera: Tensor,  # [B, 1, 3, 4] float32
        actions: Tensor,  # [B, K, A] float32, in [-1, 1]
        tokens: list[Tensor],  # [B, L, D] each, of the conditioning
    ) -> Known:
        """What a pass is given, from the memory and the actions."""
        (b, n, _), (h, w) = poses.shape, latents.shape[-2:]
        shrink = 1 / self.tokenizer.shrink
        shrunk = camera * constant(((shrink,), (shrink,), (1.0,)), camera)  # pixel axes
        drawn = drawn_poses(poses.flatten(0, 1), self.robot)
        maps = action_map(drawn, shrunk.repeat_interleave(n, 0), self.robot.gripper, h, w)
        scaled = poses[:, -self.config.chunk :] * constant(SCALES, poses)
        said = self.actions(torch.cat([actions, scaled], dim=-1).to(self.dtype)) + self.place
        return Known(latents, maps[:, 0].unflatten(0, (b, n)), torch.cat([*tokens, said], dim=1))

    def denoised(
        self,
        noisy: Tensor,  # [B, K, C, h, w]: clean + sigma noise
        sigma: Tensor,  # [B] float32
        known: Known,
    ) -> Tensor:  # [B, K, C, h, w]
        """The prediction of the clean latents, preconditioned as Stable Video Diffusion's (v-prediction)."""
        (b, m), k, dtype = known.latents.shape[:2], noisy.shape[1], self.dtype
        wide = sigma[:, None, None, None, None]
        scale = (wide.square() + 1).rsqrt()
        past = known.latents.float()
        both = torch.cat([past, noisy.float()], dim=1) * scale
        shown = self.tokenizer.unscaled(torch.cat([past, past[:, -1:].expand(-1, k, -1, -1, -1)], dim=1))
        mask = torch.cat([torch.ones_like(past[:, :, :1]), torch.zeros_like(noisy[:, :, :1], dtype=past.dtype)], dim=1)
        sample = torch.cat([both, shown, mask, known.maps], dim=2).to(dtype)
        ids = constant(TIME_IDS, sigma).to(dtype).expand(b, -1)
        out = self.unet(sample, sigma.log() / 4, known.context, added_time_ids=ids, return_dict=False)[0][:, m:]
        return noisy * scale.square() - (wide * scale) * out.float()


def cross_width(unet: nn.Module) -> int:
    """D, the width of the tokens for cross-attention."""
    width = unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def grow(unet: nn.Module, channels: int) -> None:
    """Give the first layer more input channels. Their weights are 0, so it computes what it did, whatever they hold."""
    old = unet.conv_in
    more = channels - old.in_channels
    with torch.no_grad():
        new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, device="meta")
        new.weight = nn.Parameter(torch.cat([old.weight, old.weight.new_zeros(len(old.weight), more, 3, 3)], dim=1))
        new.bias = nn.Parameter(old.bias.clone())
    unet.conv_in = new
    unet.register_to_config(in_channels=channels)


def log_normal(mean: float, std: float, drawn: Tensor) -> Tensor:
    """Noise levels of training, from standard normal numbers."""
    return (mean + std * drawn).clamp(-math.log(1e6), math.log(1e6)).exp()
