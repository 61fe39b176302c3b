"""The vision-language encoder that the embedded policy and the embedded reflector are built on."""

from typing import Literal

import torch
from torch import Tensor, nn

from worldenv.interfaces.pieces import Piece
from worldenv.nn.cost import picture_flops
from worldenv.nn.instruction import InstructionEncoder
from worldenv.nn.int8 import Conv, in_8_bits
from worldenv.nn.sentence import SentenceEncoder
from worldenv.ops.adagn import adagn
from worldenv.ops.encoder_int8 import encoder_int8
from worldenv.ops.patchify import PATCH, patchify
from worldenv.ops.spatial_softmax import spatial_softmax

GROUPS = 8  # groups of the group normalisations
Text = Literal["words", "sentences"]  # a closed vocabulary, or any sentence by a frozen language model
TEXTS: dict[Text, type[nn.Module]] = {"words": InstructionEncoder, "sentences": SentenceEncoder}


class Patches(nn.Module):
    """Frames [B, H, W, 3] -> their patches [B, 12, H / 2, W / 2] of the same dtype, channels last in memory."""

    def forward(self, frames: Tensor) -> Tensor:
        return patchify(frames[:, None]).flatten(3).permute(0, 3, 1, 2)


class SpatialSoftmax(nn.Module):
    """[B, C, h, w] -> [B, 3 C]: where each channel looks, (x, y) in [-1, 1], and how strongly."""

    def forward(self, features: Tensor) -> Tensor:
        return spatial_softmax(features)


class FilmBlock(nn.Module):
    """A residual pair of convolutions whose channels the instruction scales and shifts (Perez et al. 2018)."""

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.first, self.second = (Conv(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.film = nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.film(context).chunk(2, dim=1)
        h = adagn(self.first(x), GROUPS, self.norm.weight, self.norm.bias, scale, shift, "relu", self.norm.eps)
        return self.second(h, onto=x)


class Stem(nn.Sequential):
    """Frames [B, H, W, 3], uint8 in [0, 255] or float32 in [-1, 1] -> [B, C, H / 4, W / 4]."""

    def __init__(self, channels: int):
        first, second = Conv(PATCH, 32, 3, padding=1), Conv(32, channels, 3, stride=2, padding=1)
        super().__init__(Patches(), first, nn.ReLU(), second, nn.ReLU())

    def forward(self, frames: Tensor) -> Tensor:
        patches, first, _, second, _ = self
        return second(first(patches(frames), relu=True), relu=True)


class VisionLanguageEncoder(nn.Module):
    """Frames [B, H, W, 3] and tokens [B, L, ...] -> features [B, D].

    Frames are uint8, or float32 in [-1, 1] if a gradient should pass to them. Tokens are what `text.tokenize` makes of
    instructions, or what `text` made of those.
    """

    def __init__(self, width: int = 256, channels: int = 64, blocks: int = 2, context: int = 64, text: Text = "words"):
        super().__init__()
        self.text, self.context = TEXTS[text](context), context
        self.stem = Stem(channels)
        self.blocks = nn.ModuleList(FilmBlock(channels, context) for _ in range(blocks))
        self.look = nn.Sequential(nn.ReLU(), Conv(channels, channels, 1), SpatialSoftmax())
        self.out = nn.Linear(3 * channels + context, width)

    def forward(self, frames: Tensor, tokens: Tensor) -> Tensor:
        context = self.text(tokens)
        return self.out(torch.cat([self._see(frames, context), context], dim=-1))

    def flops(self, size: int) -> float:
        """Of a frame of `size` x `size`, as `nn.cost` counts; the instruction has been read."""
        fine, coarse = size // 2, (size // 2 + 1) // 2
        _, first, _, *rest = self.stem
        after = picture_flops(*rest, self.blocks, self.look, self.out, places=coarse**2)
        return picture_flops(first, places=fine**2) + after

    def piece(self, size: tuple[int, int]) -> Piece:
        """What can be exported; the instruction enters as `text` makes it [B, C]."""

        def given(rows: int) -> dict[str, Tensor]:
            frames = torch.randint(256, (rows, *size, 3), dtype=torch.uint8)
            return {"frames": frames, "instruction": torch.randn(rows, self.context)}

        return Piece(self, self, given, ("feature",))

    def _see(self, frames: Tensor, context: Tensor) -> Tensor:  # [B, 3 C]
        _, first, _, second, _ = self.stem
        rectify, conv, soft = self.look
        pairs = [(block.first, block.second) for block in self.blocks]
        layers = (first, second, conv, *(layer for pair in pairs for layer in pair))
        if frames.dtype == torch.uint8 and in_8_bits(*layers):
            blocks = [(one.layer, two.layer) for one, two in pairs]
            norms = [(block.norm.weight, block.norm.bias) for block in self.blocks]
            films = [block.film(context) for block in self.blocks]
            widths = len(first.weight), len(second.weight)
            return encoder_int8(frames, (first.layer, second.layer), blocks, norms, films, conv.layer, *widths, GROUPS)
        x = self.stem(frames)
        for block in self.blocks:
            x = block(x, context)
        return soft(conv(rectify(x)))
