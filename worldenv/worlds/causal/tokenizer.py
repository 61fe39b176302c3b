"""From frames to a few tokens per frame, and back."""

import torch
from torch import Tensor, nn


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
        p = self.patch
        pixels = (self.decoder(latents).float() * 127.5 + 127.5).nan_to_num(0.0).round_().clamp_(0, 255)
        patches = pixels.to(torch.uint8).view(len(latents), -1, width // p, p, p, 3)
        return patches.transpose(2, 3).reshape(len(latents), -1, width, 3)
