"""The vision-language encoder that the embedded policy and the embedded reflector are built on."""

import torch
from torch import Tensor, nn

from worldenv.instruction import InstructionEncoder
from worldenv.ops.adagn import adagn

GROUPS = 8  # of the group normalisations


def to_float(frames: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] in [0, 255] -> float32 [B, 3, H, W] in [-1, 1], channels last in memory."""
    return frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class SpatialSoftmax(nn.Module):
    """[B, C, h, w] -> [B, 3 C]: where each channel looks, (x, y) in [-1, 1], and how strongly (Levine et al. 2016)."""

    def forward(self, features: Tensor) -> Tensor:
        b, c, h, w = features.shape
        weight = features.flatten(2).softmax(-1).view(b, c, h, w)
        x = torch.linspace(-1, 1, w, device=features.device)
        y = torch.linspace(-1, 1, h, device=features.device)
        peak = (weight * features).sum((2, 3))
        return torch.cat([weight.sum(2) @ x, weight.sum(3) @ y, peak], dim=-1)


class FilmBlock(nn.Module):
    """A residual pair of convolutions whose channels the instruction scales and shifts (Perez et al. 2018)."""

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.film = nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.film(context).chunk(2, dim=1)
        h = adagn(self.first(x), GROUPS, self.norm.weight, self.norm.bias, scale, shift, "relu")
        return x + self.second(h)


class VisionLanguageEncoder(nn.Module):
    """uint8 frames [B, H, W, 3] and tokens [B, L] -> features [B, D]."""

    def __init__(self, width: int = 256, channels: int = 64, blocks: int = 2, context: int = 64):
        super().__init__()
        self.text = InstructionEncoder(context)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList(FilmBlock(channels, context) for _ in range(blocks))
        self.look = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1), SpatialSoftmax())
        self.out = nn.Linear(3 * channels + context, width)

    def forward(self, frames: Tensor, tokens: Tensor) -> Tensor:
        return self.read(to_float(frames), tokens)

    def read(self, x: Tensor, tokens: Tensor) -> Tensor:
        """As `forward`, from float32 frames [B, 3, H, W] in [-1, 1]: what a gradient can pass."""
        context = self.text(tokens)
        x = self.stem(x.to(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, context)
        return self.out(torch.cat([self.look(x), context], dim=-1))
