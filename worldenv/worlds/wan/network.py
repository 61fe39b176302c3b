"""The network of RLinf's Wan world models: diffusers' Wan transformer, told of actions instead of texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.data.formats.rlinf import GROUP
from worldenv.errors import UserError
from worldenv.records.released import Shape, library

CONTEXT = 1 + GROUP  # frames that a pass knows: the first of the episode and the last four
KNOWN = 2  # latents of these
TIMES = 1000.0  # the network's unit of noise levels
LONGEST = 1024  # places of the rotary embedding
# Names of diffusers -> those in the files.
RENAMES = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.action_mlp", "action_mlp"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"^proj_out\.", "head.head."),
)


@dataclass(frozen=True)
class WanSizes:
    """Sizes of a transformer, from the shapes in its file."""

    width: int  # D
    heads: int
    layers: int
    inner: int  # of the feed-forward layers
    frequencies: int  # of the embedding of noise levels
    channels: int  # C of a latent
    patch: Shape  # latents, rows, columns of a token
    actions: int  # A

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], head: int) -> "WanSizes":
        """Raises UserError naming the tensor that is missing or has no such shape."""
        width, channels, *patch = _shape(shapes, "patch_embedding.weight", 5)
        blocks = [int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key))]
        if not blocks or width % head or head % 2:
            raise UserError(
                f"its width is {width} in {len(set(blocks))} blocks, which heads of {head} numbers do not divide"
            )
        return cls(
            width,
            width // head,
            1 + max(blocks),
            _shape(shapes, "blocks.0.ffn.0.weight", 2)[0],
            _shape(shapes, "time_embedding.0.weight", 2)[1],
            channels,
            tuple(patch),
            _shape(shapes, "action_mlp1.0.weight", 2)[1],
        )

    def build(self) -> nn.Module:
        """diffusers' transformer, on the device meta; `finish` makes it whole once its weights are there."""
        models = library("diffusers.models.transformers.transformer_wan")
        with torch.device("meta"):
            made = models.WanTransformer3DModel(
                patch_size=self.patch,
                num_attention_heads=self.heads,
                attention_head_dim=self.width // self.heads,
                in_channels=self.channels,
                out_channels=self.channels,
                text_dim=1,
                freq_dim=self.frequencies,
                ffn_dim=self.inner,
                num_layers=self.layers,
                rope_max_seq_len=LONGEST,
            )
            made.condition_embedder = ActionEmbedder(self.width, self.frequencies, self.actions)
        return made

    def finish(self, transformer: nn.Module) -> None:
        """Make what no file holds."""
        transformer.rope = type(transformer.rope)(self.width // self.heads, self.patch, LONGEST)


def _shape(shapes: Mapping[str, Shape], key: str, dimensions: int) -> Shape:
    if len(shape := shapes.get(key, ())) != dimensions:
        raise UserError(f"it has no {key} of {dimensions} dimensions, so it is no Wan transformer with actions")
    return shape


def names_in_file(transformer: nn.Module) -> dict[str, str]:
    """The transformer's name for every name in the file."""
    names = {}
    for ours in transformer.state_dict():
        theirs = ours
        for pattern, name in RENAMES:
            theirs = re.sub(pattern, name, theirs)
        names[theirs] = ours
    return names


class ActionEmbedder(nn.Module):
    """In the place of the transformer's embedding of noise level and text: of noise level and actions.

    The first MLP makes a token of every action; cross-attention reads these as it would read a text. The second one
    adds what a latent's four actions are to the embedding of its noise level.
    """

    def __init__(self, width: int, frequencies: int, actions: int):
        super().__init__()
        parts = library("diffusers.models.embeddings")
        self.timesteps = parts.Timesteps(frequencies, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = parts.TimestepEmbedding(frequencies, width)
        self.time_proj = nn.Linear(width, 6 * width)
        self.action_mlp1 = nn.Sequential(nn.Linear(actions, width), nn.GELU(), nn.Linear(width, width))
        self.action_mlp2 = nn.Sequential(nn.Linear(GROUP * actions, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(
        self,
        timestep: Tensor,  # [B * L] noise level of every token
        actions: Tensor,  # [B, T, A], one for each frame
        image: None = None,
        timestep_seq_len: int | None = None,  # L
    ) -> tuple[Tensor, Tensor, Tensor, None]:  # [B, L, D], [B, L, 6 D], [B, T, D]
        b, _, a = actions.shape
        first = actions[:, :1].expand(-1, GROUP - 1, -1)  # the first latent is of one frame
        grouped = torch.cat([first, actions], dim=1).reshape(b, -1, GROUP * a)  # [B, F, 4 A]
        each = timestep_seq_len // grouped.shape[1]
        level = timestep.view(b, -1, each)[:, :, 0]  # a latent's tokens have one level: embedded once
        embedded = self.timesteps(level.flatten()).unflatten(0, level.shape).to(actions.dtype)
        embedded = self.time_embedder(embedded) + self.action_mlp2(grouped)
        modulation = self.time_proj(F.silu(embedded))
        return *(x.repeat_interleave(each, 1) for x in (embedded, modulation)), self.action_mlp1(actions), None


class WanNetwork(nn.Module):
    """Transformer and autoencoder."""

    def __init__(self, transformer: nn.Module, vae: nn.Module):
        super().__init__()
        self.transformer, self.vae = transformer, vae

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.proj_out.weight.dtype

    def velocity(
        self,
        latents: Tensor,  # [B, C, F, h, w], of which the first KNOWN are clean: (1 - sigma) clean + sigma noise
        sigma: float,
        actions: Tensor,  # [B, T, A]
    ) -> Tensor:  # [B, C, F - KNOWN, h, w]
        """The prediction of noise - clean for all latents but the known ones."""
        # In the network's numbers, as the authors give it: in bfloat16 a level is rounded.
        return self.velocity_at(latents, latents.new_full((len(latents),), sigma * TIMES), actions)

    def velocity_at(self, latents: Tensor, level: Tensor, actions: Tensor) -> Tensor:
        """`velocity` at the noise level TIMES sigma of each row [B]."""
        patch = self.transformer.config.patch_size
        tokens = prod(latents.shape[3:]) // prod(patch[1:])  # of a latent
        levels = level[:, None].expand(-1, (latents.shape[2] - KNOWN) * tokens)
        levels = torch.cat([levels.new_zeros(level.shape[0], KNOWN * tokens), levels], dim=1)
        out = self.transformer(latents, levels, actions.to(latents.dtype), return_dict=False)[0]
        return out[:, :, KNOWN:]
