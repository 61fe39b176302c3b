"""The network of OpenVLA-OFT under the names that its files use, so that they fit as they are.

The towers have timm's names, which are those in the files; transformers renames its own from version to version. What
the files have and nothing reads (the last block of each tower, its last norm, SigLIP's pooling) is not built.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.nn.attention import attention
from worldenv.policy.openvla_oft.prompt import STOP
from worldenv.records.released import Shape, library

TOWERS = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")  # DINOv2, SigLIP
EPS = 1e-6  # of the towers' norms
LLAMA = {  # what the authors' configuration leaves to their version of transformers: Llama 2, 7B
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of a vision tower, as the shapes of its tensors say. The number of heads is that of timm's model."""

    width: int  # D
    patch: int  # pixels
    side: int  # patches in a row
    hidden: int
    blocks: int  # those that are used: all but the last
    registers: int | None  # tokens beside the class token; None: no class token and no layer scale either
    heads: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], tower: str, heads: int) -> "TowerSizes":
        """Raises UserError if the tensors that say it are missing."""
        try:
            _, patches, width = shapes[f"{tower}.pos_embed"]
            _, _, patch, _ = shapes[f"{tower}.patch_embed.proj.weight"]
            hidden = shapes[f"{tower}.blocks.0.mlp.fc1.weight"][0]
        except (KeyError, ValueError) as error:
            raise UserError(f"the files have no whole {tower}: {error} is missing or of another kind") from None
        blocks = {key.split(".")[3] for key in shapes if key.startswith(f"{tower}.blocks.")}
        registers = shapes.get(f"{tower}.reg_token", (1, None, width))[1]
        return cls(width, patch, round(patches**0.5), hidden, len(blocks) - 1, registers, heads)


class Block(nn.Module):
    """A block of a vision transformer, with exact GELU; `scaled`: its residuals have a layer scale."""

    def __init__(self, width: int, hidden: int, heads: int, scaled: bool):
        super().__init__()
        self.heads, self.scaled = heads, scaled
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPS) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        for name in ("ls1", "ls2") if scaled else ():
            self.add_module(name, nn.Module())
            getattr(self, name).scale_factor = nn.Parameter(torch.ones(width))  # timm's gamma, as the authors call it

    def forward(self, x: Tensor) -> Tensor:  # [B, L, D]
        parts = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        attended = self.attn["proj"](attention(*parts).flatten(2))
        x = x + (attended * self.ls1.scale_factor if self.scaled else attended)
        thought = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + (thought * self.ls2.scale_factor if self.scaled else thought)


class Tower(nn.Module):
    """A vision transformer up to its last block but one: [B, 3, S, S] -> [B, L, D], without norm and class token."""

    def __init__(self, sizes: TowerSizes):
        super().__init__()
        d, self.prefix = sizes.width, 0 if sizes.registers is None else 1 + sizes.registers
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, sizes.patch, sizes.patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.side**2, d))
        if self.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.registers, d))
        self.blocks = nn.ModuleList(Block(d, sizes.hidden, sizes.heads, self.prefix > 0) for _ in range(sizes.blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2) + self.pos_embed
        if self.prefix:
            first = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token)]
            x = torch.cat([*first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]


class Mlp(nn.Module):
    """fc1, fc2, ..., with GELU between: the projectors of pictures and of proprioception."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = len(widths) - 1
        for i in range(self.layers):
            self.add_module(f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.layers):
            x = getattr(self, f"fc{i + 1}")(F.gelu(x) if i else x)
        return x


class ActionHead(nn.Module):
    """Hidden states of a chunk's numbers [B, K * A, D] -> one number for each [B, K, A]."""

    def __init__(self, width: int, numbers: int, blocks: int = 2):  # D, A
        super().__init__()
        self.numbers = numbers
        inner = self.model = nn.Module()
        inner.layer_norm1, inner.fc1 = nn.LayerNorm(width * numbers), nn.Linear(width * numbers, width)
        parts = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)]
        inner.mlp_resnet_blocks = nn.ModuleList(nn.ModuleDict({"ffn": part}) for part in parts)
        inner.layer_norm2, inner.fc2 = nn.LayerNorm(width), nn.Linear(width, numbers)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.model
        x = F.relu(inner.fc1(inner.layer_norm1(hidden.unflatten(1, (-1, self.numbers)).flatten(2))))
        for block in inner.mlp_resnet_blocks:
            x = x + block["ffn"](x)
        return inner.fc2(inner.layer_norm2(x))


def language_config(document: Mapping[str, Any]) -> Any:
    """transformers' configuration of the language model, of the `text_config` in the authors' file.

    Raises UserError if it is no Llama, or has values that transformers refuses.
    """
    if document.get("model_type", "llama") != "llama":
        raise UserError(f"its language model is a {document['model_type']!r}; a llama was expected")
    kept = {name: value for name, value in document.items() if name not in ("model_type", "torch_dtype", "dtype")}
    made = library("transformers").LlamaConfig
    try:
        return made(**LLAMA | kept, attn_implementation="sdpa")
    except Exception as error:  # of the library, which has classes of its own
        raise UserError(f"its text_config is not valid: {' '.join(str(error).split())[:200]}") from error


class Network(nn.Module):
    """Pictures, prompt and proprioception -> the hidden state of every number of a chunk of actions."""

    def __init__(self, towers: tuple[TowerSizes, TowerSizes], text: Any, pad: int):  # text: a LlamaConfig
        super().__init__()
        self.pad = pad
        names = [name.rpartition(".")[2] for name in TOWERS]
        self.vision_backbone = nn.ModuleDict({n: Tower(s) for n, s in zip(names, towers, strict=True)})
        seen, d = sum(sizes.width for sizes in towers), text.hidden_size
        self.projector = Mlp(seen, 4 * seen, d, d)
        self.language_model = library("transformers").LlamaForCausalLM(text)

    def off_meta(self) -> None:
        """Make what no file holds, for a network that was built on the device meta."""
        inner = self.language_model.model
        inner.rotary_emb = type(inner.rotary_emb)(self.language_model.config)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_backbone["featurizer"].pos_embed.dtype

    def forward(
        self,
        pixels: Tensor,  # [B, V, 2, 3, S, S] float32, for the two towers
        tokens: Tensor,  # [B, L] int64: <s>, padding, the rest of the prompt
        proprio: Tensor | None,  # [B, D], projected already
        numbers: int,  # K * A
        stop: bool = True,  # whether </s> follows
    ) -> Tensor:  # [B, K * A, D]
        """Every position sees all others (the authors' change of Llama), but for padding.

        The sequence is <s>, pictures, proprioception, padding, prompt, an empty place for each number, </s>. The state
        of a number is that of the position before its place, as in training.
        """
        seen = self.seen(pixels)
        if proprio is not None:
            seen = torch.cat([seen, proprio[:, None].to(seen.dtype)], dim=1)
        embed = self.language_model.get_input_embeddings()
        text, end = embed(tokens), embed(tokens.new_full((len(tokens), int(stop)), STOP))
        places = text.new_zeros(len(text), numbers, text.shape[-1])
        x = torch.cat([text[:, :1], seen, text[:, 1:], places, end], dim=1)
        said, others = tokens != self.pad, torch.ones_like(x[:, :, 0], dtype=torch.bool)
        real = torch.cat([others[:, : 1 + seen.shape[1]], said[:, 1:], others[:, : numbers + stop]], dim=1)  # [B, S]
        states = self.language_model.model(
            inputs_embeds=x,
            attention_mask=real[:, None, None].expand(-1, 1, x.shape[1], -1),  # of four dimensions: taken as it is
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        first = states.shape[1] - stop - numbers - 1
        return states[:, first : first + numbers]

    def seen(self, pixels: Tensor) -> Tensor:  # [B, V, 2, 3, S, S] -> [B, V * L, D]
        """The patches of the pictures, as the language model takes them."""
        pictures = pixels.to(self.dtype).flatten(0, 1).unbind(1)
        towers = self.vision_backbone.values()
        patches = torch.cat([tower(x) for tower, x in zip(towers, pictures, strict=True)], dim=-1)
        return self.projector(patches).unflatten(0, (pixels.shape[0], -1)).flatten(1, 2)
