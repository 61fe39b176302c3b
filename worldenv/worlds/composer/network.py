"""The composer's network: a flow transformer with a convolutional stem and decoder, K frames at a time."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.fields import ADDED, LARGEST, FieldError, Within, check_fields
from worldenv.nn.attention import attention
from worldenv.nn.int8 import Conv, Int8, Linear, in_8_bits
from worldenv.ops.action_map import CHANNELS as MAP_CHANNELS
from worldenv.ops.action_map import Gripper
from worldenv.ops.adagn import adagn
from worldenv.ops.adaln import adaln
from worldenv.ops.compose import compose
from worldenv.ops.compose_int8 import compose_int8
from worldenv.ops.constants import constant
from worldenv.ops.map_features import map_features
from worldenv.ops.patchify import PATCH
from worldenv.ops.residual_int8 import residual_int8
from worldenv.ops.transformer_int8 import transformer_int8
from worldenv.worlds.composer.contact import ContactNetwork

GROUPS = 8  # groups of the group normalisations
SMALLEST_SHARE, SMALLEST_CORRECTION = 0.05, 0.02  # of a pixel; of the range [-1, 1]


@dataclass(frozen=True)
class ComposerConfig:
    chunk: int = 4  # K, frames per pass
    widths: tuple[int, int, int] = (40, 80, 160)  # channels at 1/2, 1/4 and 1/8 of the image
    layers: int = 4  # transformer layers at 1/8
    heads: int = 5
    image_size: int = 64
    exact: bool = False  # drop small shares and corrections: objects at rest are copied exactly
    stops: bool = field(default=False, metadata=ADDED)  # `contact` says where things stop the gripper on its way down
    held_open: bool = field(default=False, metadata=ADDED)  # `contact` says how far open held things keep the fingers
    # Whether a grasp succeeds is sampled (`grasp_thresholds`). False: it does if its logit is above 0.
    samples_grasps: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        check_fields(self, **dict.fromkeys(("chunk", "widths", "layers", "heads", "image_size"), Within(1, LARGEST)))
        if self.image_size % 8 or self.widths[2] % self.heads or any(width % 8 for width in self.widths):
            raise FieldError(f"image_size and widths should be multiples of 8, widths[2] of heads: {self}")
        if self.exact and self.sources * SMALLEST_SHARE >= 1:  # else even the largest share could be below the limit
            raise FieldError(
                f"exact composition chooses among fewer than {1 / SMALLEST_SHARE:.0f} sources, a chunk of "
                f"{self.chunk} has {self.sources}: take a shorter chunk, or exact=False"
            )

    @property
    def leads(self) -> bool:
        """Whether `contact` changes where the kinematics lead. They have to be FittedKinematics."""
        return self.stops or self.held_open

    @property
    def sources(self) -> int:
        """The pictures from which a pixel may be taken: those of `known_pictures`, and the background."""
        return 2 + 4 * self.chunk


class ResidualBlock(nn.Module):
    """Two convolutions, normalised, scaled and shifted by the condition vector."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv1 = Conv(inputs, outputs, 3, padding=1)
        self.conv2 = Conv(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outputs)
        self.skip = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, condition: Tensor, more: Tensor | None = None) -> Tensor:
        """`more` [B, 4 M, H / 2, W / 2] are M further channels, from depth to space."""
        norm1, norm2, eps = self.norm1, self.norm2, self.norm1.eps
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        if in_8_bits(self.conv1, self.conv2, self.skip):
            first, second = (norm1.weight, norm1.bias), (norm2.weight, norm2.bias)
            skip = None if isinstance(self.skip, nn.Identity) else self.skip.layer
            layers = (first, self.conv1.layer, second, (scale, shift), self.conv2.layer, skip)
            return residual_int8(x, GROUPS, "silu", *layers, more, eps)
        if more is not None:
            x = torch.cat([x, F.pixel_shuffle(more, 2)], dim=1)
        h = adagn(x, GROUPS, norm1.weight, norm1.bias, None, None, "silu", eps)
        h = adagn(self.conv1(h), GROUPS, norm2.weight, norm2.bias, scale, shift, "silu", eps)
        return self.conv2(h, onto=self.skip(x))


class TransformerLayer(nn.Module):
    """Self-attention and MLP over the tokens of one chunk, with adaptive layer norm (Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int, condition: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.merge = Linear(width, 3 * width), Linear(width, width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(approximate="tanh"), Linear(4 * width, width))
        self.modulate = nn.Linear(condition, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        b, n, d = x.shape
        first, gelu, second = self.mlp
        if in_8_bits(self.qkv, self.merge, first, second):
            layers = (layer.layer for layer in (self.qkv, self.merge, first, second))
            return transformer_int8(x, self.modulate(condition), self.heads, 4 * d, *layers)
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(condition).chunk(6, dim=-1)
        _, h = adaln(x, scale1, shift1)
        h = attention(*self.qkv(h).view(b, n, 3, self.heads, d // self.heads).unbind(2)).reshape(b, n, d)
        x, h = adaln(x, scale2, shift2, self.merge(h), gate1)
        return torch.addcmul(x, gate2[:, None], second(gelu(first(h))))


@dataclass
class Seen:
    """The part of a chunk's computation that does not depend on noise: used again at every denoising step."""

    features: Tensor  # [B, H / 2, W / 2, D1]
    poses: Tensor  # [B, D]
    pictures: Tensor  # [B, H / 2, W / 2, 1 + 4 K, 12], patches, uint8


class ComposerNetwork(nn.Module):
    """Predicts the clean frames of a chunk from noisy ones, known pictures, the poses and the action map drawn of them.

    Frames go in and out as patches of 2 x 2 pixels (`patchify`).

    Each frame is composed. For every pixel, the network weighs the known pictures (`known_pictures`: the present frame
    with the moved thing where it will be, frames moved along with the gripper) and the background (`plate`); then it
    adds a correction. What becomes of things is decided before: `contact` says what the gripper takes along, and how
    far it comes.
    """

    def __init__(self, config: ComposerConfig):
        super().__init__()
        self.config = config
        k, (a, b, c) = config.chunk, config.widths
        d = 2 * c  # width of the condition vector
        self.noise_level = nn.Sequential(nn.Linear(32, d), nn.SiLU(), nn.Linear(d, d))
        self.poses = nn.Sequential(nn.Linear(7 * (k + 1), d), nn.SiLU(), nn.Linear(d, d))
        self.see_pictures = Linear(PATCH * (config.sources - 1), a)
        self.see_map = nn.Conv2d(MAP_CHANNELS * (k + 1), a, 2, stride=2, bias=False)
        self.see_noisy = Linear(PATCH * k, a, bias=False)
        self.fine = ResidualBlock(a, a, d)
        self.down1 = Conv(a, b, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(b, b, d) for _ in range(2))
        self.down2 = Conv(b, c, 3, stride=2, padding=1)
        self.place = nn.Parameter(torch.randn(1, (config.image_size // 8) ** 2, c) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(c, config.heads, d) for _ in range(config.layers))
        self.up2 = Conv(c, 4 * b, 1)
        self.middle_out = ResidualBlock(2 * b, b, d)
        self.up1 = Conv(b, 4 * a, 1)
        self.fine_out = nn.ModuleList(ResidualBlock(width, a, d) for width in (2 * a, a))
        self.compose = Linear(a, (3 + config.sources) * k * 4)
        nn.init.zeros_(self.compose.weight)
        nn.init.zeros_(self.compose.bias)
        self.prefer = nn.Parameter(_own_frame_first(config))
        self.contact = ContactNetwork(k, config.stops, config.held_open)
        size = config.image_size // 2
        self.plate = nn.Parameter(torch.zeros(size, size, PATCH))  # the empty scene, as patches in [-1, 1]

    def see(
        self,
        pictures: Tensor,  # [B, H / 2, W / 2, 1 + 4 K, 12] uint8, from `known_pictures`
        poses: Tensor,  # [B, K + 1, 7] float32, the present one first
        camera: Tensor,  # [B, 1, 3, 4] float32
        gripper: Gripper,
    ) -> Seen:
        """The part that does not depend on the noise, computed once per chunk."""
        size = self.config.image_size
        features = map_features(poses, camera, self.see_map.weight, gripper, size, size)[:, 0]
        features = self.see_pictures(pictures.flatten(3), onto=features)
        scale = constant((5, 5, 5, 1, 1, 1, 1), poses)
        return Seen(features, self.poses((poses * scale).flatten(1)), pictures)

    def denoise(
        self,
        noisy: Tensor,  # [B, H / 2, W / 2, K, 12] float32 patches: (1 - t) clean + t noise
        t: Tensor,  # [B] float32 in (0, 1]
        seen: Seen,
    ) -> Tensor:  # [B, H / 2, W / 2, K, 12] float32 patches, the predicted clean frames
        """One pass of the denoiser."""
        condition = F.silu(self.noise_level(_fourier(t)) + seen.poses)
        fine = self.see_noisy(noisy.flatten(3), onto=seen.features)
        fine = self.fine(fine.permute(0, 3, 1, 2), condition)
        middle = self.down1(fine)
        for block in self.middle:
            middle = block(middle, condition)
        coarse = self.down2(middle)
        tokens = coarse.flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            tokens = layer(tokens, condition)
        coarse = tokens.transpose(1, 2).reshape(coarse.shape).contiguous(memory_format=torch.channels_last)
        middle = self.middle_out(middle, condition, self.up2(coarse))
        first, second = self.fine_out
        fine = second(first(fine, condition, self.up1(middle)), condition)
        fine = fine.permute(0, 2, 3, 1)
        preference = F.pad(self.prefer, (0, 0, 3, 0)).flatten().repeat_interleave(4)
        cut = (SMALLEST_SHARE, SMALLEST_CORRECTION) if self.config.exact else (0.0, 0.0)
        if isinstance(self.compose, Int8) and seen.pictures.dtype == torch.uint8:
            return compose_int8(fine, *self.compose.layer, preference, seen.pictures, self.plate, *cut)
        return compose(self.compose(F.silu(fine)), preference, seen.pictures, self.plate, *cut)


def _own_frame_first(config: ComposerConfig) -> Tensor:  # [sources, K]
    """What each frame prefers before anything is learned: the pictures that were made for it, above all the present
    frame with the moved thing where it will be."""
    k = config.chunk
    prefer = torch.full((4, k, k), -3.0)
    for kind, own in enumerate((1.0, 1.0, 4.0, 2.0)):  # the order of `known_pictures`
        prefer[kind].fill_diagonal_(own)
    return torch.cat([torch.full((1, k), -1.0), prefer.flatten(0, 1), torch.zeros(1, k)])


def _fourier(t: Tensor) -> Tensor:  # [B] -> [B, 32]
    angle = t[:, None] * torch.arange(1, 17, device=t.device) * (torch.pi / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
