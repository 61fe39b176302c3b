"""Frames to latents and back, one by one, by any of diffusers' autoencoders."""

import torch
from torch import Tensor, nn

from worldenv.interfaces.pieces import Piece
from worldenv.worlds.wan.vae import WanVae

# Class -> the entry of its configuration that has an item for each level; every level but the first halves the sides.
LEVELS = {
    "AutoencoderKL": "block_out_channels",
    "AutoencoderKLTemporalDecoder": "block_out_channels",
    "AutoencoderDC": "encoder_block_out_channels",
    "AutoencoderTiny": "encoder_block_out_channels",
    "AutoencoderKLWan": "dim_mult",
}


class FrameTokenizer(nn.Module):
    """A frozen autoencoder. Latents are scaled as the networks that its authors have trained on them take them.

    Every frame is encoded and decoded by itself, so any of them can be left in latents: Wan's autoencoder takes each
    for the first of a video, and Stable Video Diffusion's decoder for a video of one frame.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, config = model, model.config
        self.kind = type(model).__name__
        self.video = WanVae(model) if self.kind == "AutoencoderKLWan" else None
        self.channels: int = config.z_dim if self.video is not None else config.latent_channels
        self.shrink = (config.get("patch_size") or 1) * 2 ** (len(config[LEVELS[self.kind]]) - 1)
        self.scale = 1.0 if self.video is not None else float(config.scaling_factor)
        self.shift = 0.0 if self.video is not None else float(config.get("shift_factor") or 0.0)
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N, C, h, w]
        """The means of the latents, scaled."""
        if self.video is not None:
            return self.video.encode(frames[:, None])[:, :, 0]
        pictures = (frames.movedim(-1, 1).float() / 127.5 - 1).to(self.dtype)
        out = self.model.encode(pictures)
        if self.kind == "AutoencoderTiny":
            latents = out.latents
        else:
            latents = out.latent if self.kind == "AutoencoderDC" else out.latent_dist.mode()
        return (latents - self.shift) * self.scale

    def unscaled(self, latents: Tensor) -> Tensor:
        """The latents as the autoencoder gives them."""
        return latents / self.scale + self.shift

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # [N, C, h, w] -> [N, H, W, 3] uint8
        """Pictures, rounded to 8 bits; what is not finite is grey."""
        out = self.pixels(latents)
        return (out * 127.5 + 127.5).nan_to_num(127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:  # [N, C, h, w] -> [N, 3, H, W] float32
        """Pictures as they come out, about in [-1, 1]."""
        latents = latents.to(self.dtype)
        if self.video is not None:
            return self.video.pixels(latents[:, :, None])[:, :, 0]
        more = {"num_frames": 1} if self.kind == "AutoencoderKLTemporalDecoder" else {}
        return self.model.decode(self.unscaled(latents), **more).sample.float()

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Encoder and decoder."""

        def frames(rows: int) -> dict[str, Tensor]:
            return {"frames": torch.randint(256, (rows, *size, 3), dtype=torch.uint8)}

        def latents(rows: int) -> dict[str, Tensor]:
            return {"latents": torch.randn(rows, self.channels, *(side // self.shrink for side in size))}

        return {
            "encoder": Piece(self, self.encode, frames, ("latents",)),
            "decoder": Piece(self, self.pixels, latents, ("pixels",)),
        }
