"""Feature injection: what frozen encoders see in an episode's first picture, as tokens for cross-attention.

World-Env (arXiv 2509.24948): features of a semantic encoder (CLIP) and of a geometry encoder (VGGT) enter by
cross-attention at several resolutions. The tokens of all encoders are one sequence, which every block of the network
attends to, at every depth. They are computed once for each episode.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.ops.constants import constant

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FrameEncoder(Protocol):
    """A frozen `nn.Module` that sees pictures: two methods, and the width of what it says."""

    width: int  # D

    def prepare(self, frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N, 3, S, S]
        """The pictures as the network takes them."""

    def encode(self, pictures: Tensor) -> Tensor:  # [N, 3, S, S] -> [N, L, D]
        """Its features, L tokens of a picture."""


class ClipEncoder(nn.Module):
    """transformers' CLIPVisionModelWithProjection: the picture's embedding and, with "all", those of its patches.

    The patches go through the same last norm and projection as the picture's own token, into the space that CLIP
    shares with texts; Stable Video Diffusion has been trained on the first of these tokens alone.
    """

    def __init__(self, model: nn.Module, tokens: Literal["all", "pooled"] = "all"):
        super().__init__()
        self.model, self.tokens = model.requires_grad_(False).eval(), tokens
        self.width: int = model.config.projection_dim
        self.size: int = model.config.image_size

    def prepare(self, frames: Tensor) -> Tensor:
        return prepared(frames, self.size, CLIP_MEAN, CLIP_STD)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        vision = self.model.vision_model
        seen = vision(pixel_values=pictures.to(self.model.visual_projection.weight.dtype)).last_hidden_state
        seen = seen if self.tokens == "all" else seen[:, :1]
        return self.model.visual_projection(vision.post_layernorm(seen))


class GeometryEncoder(nn.Module):
    """The patches of a vision transformer of transformers (DINOv2, with registers or without), at any multiple of its
    patch: the trunk of VGGT (worldenv/worlds/vggt.py has all of it) and of Depth Anything."""

    def __init__(self, model: nn.Module, size: int = 224):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.width: int = model.config.hidden_size
        self.size = max(1, size // model.config.patch_size) * model.config.patch_size
        self.before = 1 + getattr(model.config, "num_register_tokens", 0)  # tokens that are no patches

    def prepare(self, frames: Tensor) -> Tensor:
        return prepared(frames, self.size, IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return self.model(pixel_values=pictures.to(dtype)).last_hidden_state[:, self.before :]


def prepared(
    frames: Tensor,  # [N, H, W, 3] uint8
    size: int,  # S
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:  # [N, 3, S, S] float32
    """Pictures resized (bicubic, antialiased) and normalised, on their device."""
    x = frames.movedim(-1, 1).float() / 255
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    of_colours = (constant(tuple(values), x)[:, None, None] for values in (mean, std))
    middle, spread = of_colours
    return (x - middle) / spread


class Conditioning(nn.Module):
    """Frozen encoders, and a trained projection of each one's tokens to the width of cross-attention.

    A new projection is the identity where the widths are equal: a network that was trained on an encoder's tokens
    finds them unchanged. Any encoder may be left out.
    """

    def __init__(self, encoders: Mapping[str, FrameEncoder], width: int):
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict()
        for name, encoder in encoders.items():
            projection = self.projections[name] = nn.Linear(encoder.width, width)
            nn.init.zeros_(projection.bias)
            if encoder.width == width:
                nn.init.eye_(projection.weight)

    @torch.no_grad()
    def features(self, frames: Tensor) -> dict[str, Tensor]:  # [N, H, W, 3] uint8 -> [N, L, D] of each encoder
        """What each encoder sees. No gradient."""
        return {name: encoder.encode(encoder.prepare(frames)) for name, encoder in self.encoders.items()}

    def tokens(self, features: Mapping[str, Tensor]) -> list[Tensor]:  # [N, L, width] each
        """The features as cross-attention reads them, with a gradient for the projections."""
        return [self.projections[name](seen.to(self.projections[name].weight.dtype)) for name, seen in features.items()]
