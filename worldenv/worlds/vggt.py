"""The trunk of VGGT (Wang et al. 2025) under the names in its authors' file: a geometry encoder of pictures.

DINOv2's patches, then blocks that attend within a picture and across pictures in turn, with rotary positions in two
dimensions. Each picture is read by itself here, as the first one of a scene. The heads (camera, depth, points, tracks)
are not read.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.nn.attention import attention
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import AGAIN, WEIGHTS, Entry, Release, Shape, check_shapes, header
from worldenv.worlds.conditioning import IMAGENET_MEAN, IMAGENET_STD, prepared

PREFIX = "aggregator."
MARK = f"{PREFIX}camera_token"  # what tells the file
UNUSED = f"{PREFIX}patch_embed.mask_token"
BASE = 100.0  # of the rotary frequencies


class Block(nn.Module):
    """A block of a vision transformer with layer scales; `normed`: queries and keys are normalised, and rotated."""

    def __init__(self, width: int, hidden: int, head: int, normed: bool):
        super().__init__()
        self.head, eps = head, 1e-5 if normed else 1e-6
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        if normed:
            self.attn.update({"q_norm": nn.LayerNorm(head), "k_norm": nn.LayerNorm(head)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:  # [N, L, D]
        parts = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # [N, heads, L, head]
        if turn is not None:
            query, key = (_turned(self.attn[f"{k}_norm"](t), *turn) for k, t in (("q", query), ("k", key)))
        seen = attention(*(part.transpose(1, 2) for part in (query, key, value))).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](seen)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Trunk(nn.Module):
    """DINOv2 with registers: the patches of a picture after the last norm."""

    def __init__(self, sizes: "VggtSizes"):
        super().__init__()
        width, self.patch = sizes.width, sizes.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.places, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, sizes.registers, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, self.patch, self.patch)})
        self.blocks = nn.ModuleList(Block(width, sizes.hidden, sizes.head, False) for _ in range(sizes.trunk))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pictures: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, L, D]
        patches = self.patch_embed["proj"](pictures)
        places = self._places(*patches.shape[2:])
        x = patches.flatten(2).transpose(1, 2) + places[:, 1:]
        n, registers = x.shape[0], self.register_tokens.shape[1]
        first = (self.cls_token + places[:, :1]).expand(n, -1, -1)
        x = torch.cat([first, self.register_tokens.expand(n, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 1 + registers :])

    def _places(self, rows: int, columns: int) -> Tensor:  # [1, 1 + rows * columns, D]
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        square = self.pos_embed[:, 1:].float().unflatten(1, (side, side)).movedim(-1, 1)
        drawn = F.interpolate(square, (rows, columns), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], drawn.to(self.pos_embed.dtype)], dim=1)


class VggtEncoder(nn.Module):
    """A `FrameEncoder`: VGGT's last features of every patch, within the picture and across pictures, 2 D numbers."""

    def __init__(self, sizes: "VggtSizes", size: int = 224):
        super().__init__()
        self.width, self.head = 2 * sizes.width, sizes.head
        self.size = max(1, size // sizes.patch) * sizes.patch
        self.patch_embed = Trunk(sizes)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, sizes.width))  # of the first picture, and of others
        self.register_token = nn.Parameter(torch.zeros(1, 2, sizes.registers, sizes.width))
        for name in ("frame_blocks", "global_blocks"):
            blocks = (Block(sizes.width, sizes.hidden, sizes.head, True) for _ in range(sizes.layers))
            setattr(self, name, nn.ModuleList(blocks))

    def prepare(self, frames: Tensor) -> Tensor:
        return prepared(frames, self.size, IMAGENET_MEAN, IMAGENET_STD)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:  # [N, 3, S, S] -> [N, L, 2 D]
        patches = self.patch_embed(pictures.to(self.camera_token.dtype))
        special = torch.cat([self.camera_token[:, 0], self.register_token[:, 0]], dim=1)  # of a first picture
        x, turn = torch.cat([special.expand(patches.shape[0], -1, -1), patches], dim=1), self._turn(special, patches)
        within = x
        for frame, across in zip(self.frame_blocks, self.global_blocks, strict=True):
            within = frame(x, turn)
            x = across(within, turn)
        return torch.cat([within, x], dim=-1)[:, special.shape[1] :]

    def _turn(self, special: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:  # cosine, sine [L, head]
        """Of rows for the first half of a head, of columns for the second; special tokens are at (0, 0)."""
        side, half = math.isqrt(patches.shape[1]), self.head // 2
        row, column = torch.meshgrid(*[torch.arange(1, 1 + side, device=patches.device)] * 2, indexing="ij")
        place = F.pad(torch.stack([row.flatten(), column.flatten()], dim=1).float(), (0, 0, special.shape[1], 0))
        rates = BASE ** (-torch.arange(0, half, 2, device=place.device) / half)
        angle = (place[..., None] * rates).repeat(1, 1, 2).flatten(1)  # each axis: its rates twice
        return angle.cos().to(patches.dtype), angle.sin().to(patches.dtype)


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # [N, heads, L, head], [L, head]
    first, second = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # of each axis
    return x * cosine + torch.stack([-second, first], dim=-2).flatten(-3) * sine


@dataclass(frozen=True)
class VggtSizes:
    """Sizes of a VGGT, from the shapes in its file."""

    width: int  # D
    hidden: int
    head: int
    layers: int  # pairs of blocks
    trunk: int  # blocks of DINOv2
    patch: int
    places: int  # patches of the picture that positions were trained for
    registers: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> "VggtSizes":
        def count(name: str) -> int:
            found = {key.split(".")[1 + name.count(".")] for key in shapes if key.startswith(f"{name}.")}
            return len(found)

        return cls(
            shapes["camera_token"][-1],
            shapes["frame_blocks.0.mlp.fc1.weight"][0],
            shapes["frame_blocks.0.attn.q_norm.weight"][0],
            count("frame_blocks"),
            count("patch_embed.blocks"),
            shapes["patch_embed.patch_embed.proj.weight"][-1],
            shapes["patch_embed.pos_embed"][1] - 1,
            shapes["register_token"][2],
        )


@dataclass(frozen=True)
class Vggt:
    """A folder of VGGT, of whose tensors only names and shapes have been read."""

    release: Release
    encoder: VggtEncoder  # on the device meta

    def outline(self) -> VggtEncoder:
        """The encoder without its weights, on the device meta."""
        return self.encoder

    def read(self, dtype: torch.dtype | None) -> VggtEncoder:
        """Read the weights, frozen. Raises CheckpointError for a tensor that is not finite."""
        names = {f"{PREFIX}{name}": name for name in self.encoder.state_dict()}
        self.release.fill(self.encoder, names, dtype)
        return self.encoder.requires_grad_(False).eval()


def is_vggt(folder: Path) -> bool:
    """Whether the folder's weights are VGGT's; its config.json says no architecture."""
    return (folder / WEIGHTS).is_file() and MARK in header(folder / WEIGHTS)


def inspect_vggt(folder: Path, size: int = 224) -> Vggt:
    """size: pixels of the picture that it looks at, rounded down to whole patches.

    Raises CheckpointError if a tensor of the trunk is missing, unexpected or of another shape.
    """
    path = folder / WEIGHTS
    found = {key: shape for key, shape in header(path).items() if key.startswith(PREFIX) and key != UNUSED}
    shapes = {re.sub(f"^{re.escape(PREFIX)}", "", key): shape for key, shape in found.items()}
    try:
        with torch.device("meta"):
            encoder = VggtEncoder(VggtSizes.of(shapes), size)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no VGGT ({error}); {AGAIN}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    check_shapes(path, shapes, wanted, AGAIN)
    return Vggt(Release(folder, {}, {key: Entry(path, shape) for key, shape in found.items()}), encoder)
