"""From frames to a few tokens per frame, and back."""

from functools import partial

import torch
from torch import Tensor, nn

from worldenv.interfaces.pieces import Piece


class PatchTokenizer(nn.Module):
    """One token for every square patch of a frame: a linear map each way, at first one the transpose of the other.

    So before training, decoding an encoded frame gives the projection of its patches (3 p^2 numbers) on C directions.
    """

    def __init__(self, patch: int, channels: int):
        super().__init__()
        numbers = 3 * patch**2
        if channels > numbers:
            raise ValueError(f"channels is {channels}; a patch has only {numbers} numbers")
        self.patch, self.channels = patch, channels
        self.encoder, self.decoder = nn.Linear(numbers, channels), nn.Linear(channels, numbers)
        nn.init.orthogonal_(self.encoder.weight)
        self.decoder.weight.data = self.encoder.weight.data.T.clone()
        nn.init.zeros_(self.encoder.bias)
        nn.init.zeros_(self.decoder.bias)

    def encode(self, frames: Tensor) -> Tensor:  # [B, H, W, 3] uint8 -> [B, H W / p^2, C]
        b, height, width, _ = frames.shape
        p = self.patch
        patches = frames.view(b, height // p, p, width // p, p, 3).transpose(2, 3).reshape(b, -1, 3 * p * p)
        return self.encoder(patches.to(self.encoder.weight.dtype) / 127.5 - 1)

    def decode(self, latents: Tensor, width: int) -> Tensor:  # [B, L, C] -> [B, H, W, 3] uint8
        pixels = (self.decoder(latents).float() * 127.5 + 127.5).nan_to_num(0.0).round_().clamp_(0, 255)
        return self._joined(pixels.to(torch.uint8), width)

    def pixels(self, latents: Tensor, width: int) -> Tensor:  # [B, L, C] -> [B, H, W, 3] float32
        """The frames as they come out, about in [-1, 1]."""
        return self._joined(self.decoder(latents).float(), width)

    def _joined(self, numbers: Tensor, width: int) -> Tensor:  # [B, L, 3 p^2] -> [B, H, W, 3]
        p, b = self.patch, numbers.shape[0]  # no len(): an export would take it for a constant
        patches = numbers.view(b, -1, width // p, p, p, 3)
        return patches.transpose(2, 3).reshape(b, -1, width, 3)

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Encoder and decoder."""

        def frames(rows: int) -> dict[str, Tensor]:
            return {"frames": torch.randint(256, (rows, *size, 3), dtype=torch.uint8)}

        def latents(rows: int) -> dict[str, Tensor]:
            return {"latents": torch.randn(rows, size[0] * size[1] // self.patch**2, self.channels)}

        return {
            "encoder": Piece(self, self.encode, frames, ("latents",)),
            "decoder": Piece(self, partial(self.pixels, width=size[1]), latents, ("pixels",)),
        }
