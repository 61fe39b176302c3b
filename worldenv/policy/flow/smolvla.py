"""SmolVLA (Shukor et al. 2025, arXiv 2506.01844): transformers' SmolVLM and an action expert, as LeRobot joins them.

Every layer of the expert looks at the keys and values of the language model's layer beside it: in every other layer
(`self_attn_every_n_layers`) together with its own, causally; in the others through projections of theirs.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.files import read_json
from worldenv.policy.flow.config import FlowConfig
from worldenv.policy.flow.layers import attended, heads, passed, turned
from worldenv.policy.flow.layout import Architecture, FlowNetwork, features, matched, refuse, vlm_folders, whole
from worldenv.policy.flow.prompt import Prompt
from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import AGAIN, Release, library

WAVELENGTH = 10_000  # of rotary positions, whatever the language model was trained with: LeRobot's own
SOURCE = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
UNUSED = r"model\.vlm_with_expert\.vlm\.lm_head\.weight"
SHARED = 256  # the expert's inner width is a multiple of it


@dataclass(frozen=True)
class Sizes:
    """What LeRobot's configuration says of the network."""

    horizon: int  # K
    numbers: int  # D
    state_numbers: int
    layers: int  # of the language model, and of the expert
    every: int  # a layer of so many looks at the expert's own keys, too; 0: none does
    crossed: bool  # the others look through projections; False: all look at both
    width: int  # W
    periods: tuple[float, float]  # of the embedding of time


class Prefix(NamedTuple):
    """What the steps need of one look."""

    keys: list[tuple[Tensor, Tensor]]  # of each layer, turned by their positions; and values: [B, L, heads, size]
    real: Tensor  # [B, L] bool, False where a prompt is padded


class SmolVLANetwork(FlowNetwork):
    """Under the names that LeRobot's files use, but for their first, `model.`"""

    state_in_step = False
    head = "action_out_proj"
    expert = r"vlm_with_expert\.lm_expert\..*|action_(in_proj|time_mlp_in|time_mlp_out)"

    def __init__(self, vlm: Any, sizes: Sizes):  # a SmolVLMConfig of transformers
        super().__init__()
        transformers, text = library("transformers"), vlm.text_config
        self.sizes, self.horizon, self.numbers = sizes, sizes.horizon, sizes.numbers
        self.state_numbers, self.width = sizes.state_numbers, sizes.width
        last = sizes.layers - 1  # of which keys and values alone are looked at
        self.unused = rf"vlm_with_expert\.vlm\.model\.text_model\.layers\.{last}\.(self_attn\.[qo]_proj|mlp\..*)"
        own = type(text).from_dict(text.to_dict() | _expert(text, sizes))
        joint = self.vlm_with_expert = nn.Module()
        joint.vlm = nn.Module()
        joint.vlm.model = transformers.SmolVLMModel(vlm)
        joint.lm_expert = transformers.LlamaModel(own)
        joint.lm_expert.embed_tokens = None  # actions are no tokens
        for part in (joint.vlm.model.text_model, joint.lm_expert):
            part.rotary_emb = None  # positions are LeRobot's own
        inner = text.num_key_value_heads * text.head_dim
        for i, layer in enumerate(joint.lm_expert.layers):
            if not self.sees_itself(i):
                layer.self_attn.k_proj = nn.Linear(inner, inner, bias=text.attention_bias)
                layer.self_attn.v_proj = nn.Linear(inner, inner, bias=text.attention_bias)
        self.state_proj = nn.Linear(sizes.state_numbers, text.hidden_size)
        self.action_in_proj = nn.Linear(sizes.numbers, sizes.width)
        self.action_out_proj = nn.Linear(sizes.width, sizes.numbers)
        self.action_time_mlp_in = nn.Linear(2 * sizes.width, sizes.width)
        self.action_time_mlp_out = nn.Linear(sizes.width, sizes.width)

    def sees_itself(self, layer: int) -> bool:
        """Whether a layer of the expert looks at the expert's own keys, too."""
        return not self.sizes.crossed or (self.sizes.every > 0 and layer % self.sizes.every == 0)

    def seen(self, pixels: Tensor) -> Tensor:
        model = self.vlm_with_expert.vlm.model
        vision = model.vision_model
        seen = vision(pixels.flatten(0, 1).to(vision.post_layernorm.weight.dtype)).last_hidden_state
        return model.connector(seen).unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def prefix(self, pixels: Tensor, tokens: Tensor, state: Tensor) -> Prefix:
        return self._prefix(self.seen(pixels), tokens, state)

    def _prefix(self, seen: Tensor, tokens: Tensor, state: Tensor) -> Prefix:
        text = self.vlm_with_expert.vlm.model.text_model
        said, root = text.embed_tokens(tokens.clamp(min=0)), math.sqrt(seen.shape[-1])
        own = self.state_proj(state.to(self.state_proj.weight.dtype))[:, None]
        x = torch.cat([seen * root, said * root, own], dim=1).to(text.norm.weight.dtype)
        others = torch.ones_like(x[:, :, 0], dtype=torch.bool)
        real = torch.cat([others[:, : seen.shape[1]], tokens >= 0, others[:, :1]], dim=1)
        last = torch.arange(x.shape[1], device=x.device) == x.shape[1] - 1
        # [B, L, L]: the state sees all, and nothing but actions sees it; what a padded place sees, nothing looks at.
        mask = real[:, None] & (last[:, None] | ~last)
        turn, keys = rotary(real.cumsum(1) - 1, text.layers[0].self_attn.head_dim), []
        for layer in text.layers:
            h = layer.input_layernorm(x)
            key, value = turned(heads(layer, "k", h), turn), heads(layer, "v", h)
            keys.append((key, value))
            if len(keys) < len(text.layers):
                x = passed(layer, x, attended(turned(heads(layer, "q", h), turn), key, value, mask))
        return Prefix(keys, real)

    def velocity(self, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        expert = self.vlm_with_expert.lm_expert
        real = prefix.real
        h = self._embedded(x.to(self.action_in_proj.weight.dtype), time).to(expert.norm.weight.dtype)
        places = torch.arange(x.shape[1], device=x.device)
        size = expert.layers[0].self_attn.head_dim
        alone = rotary(places[None].expand(x.shape[0], -1), size)
        after = rotary(real.sum(1, keepdim=True) + places, size)
        past = real[:, None].expand(-1, x.shape[1], -1)  # [B, K, L]
        causal = (places <= places[:, None]).expand(x.shape[0], -1, -1)  # [B, K, K]
        for i, layer in enumerate(expert.layers):
            key, value = (tensor.to(h.dtype) for tensor in prefix.keys[i])
            n, mask, turn = layer.input_layernorm(h), past, alone
            if self.sees_itself(i):
                turn, mask = after, torch.cat([past, causal], dim=2)
                key = torch.cat([key, turned(heads(layer, "k", n), turn)], dim=1)
                value = torch.cat([value, heads(layer, "v", n)], dim=1)
            else:
                key, value = heads(layer, "k", key.flatten(2)), heads(layer, "v", value.flatten(2))
            h = passed(layer, h, attended(turned(heads(layer, "q", n), turn), key, value, mask))
        hidden = expert.norm(h).float()
        return self.action_out_proj(hidden), hidden

    def kept(self, prefix: Prefix) -> dict[str, Tensor]:
        keys, values = (torch.stack(part, dim=1) for part in zip(*prefix.keys, strict=True))
        return {"keys": keys, "values": values, "real": prefix.real}

    def language(self, seen: Tensor, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.kept(self._prefix(seen, tokens, state)).values())

    def step(self, x: Tensor, time: Tensor, keys: Tensor, values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity(Prefix(list(zip(keys.unbind(1), values.unbind(1), strict=True)), real), x, time)

    def _embedded(self, x: Tensor, time: Tensor) -> Tensor:  # [B, K, D], [B] -> [B, K, W]
        low, high = self.sizes.periods
        share = torch.linspace(0.0, 1.0, self.sizes.width // 2, dtype=torch.float64, device=x.device)
        angle = 2 * math.pi / (low * (high / low) ** share) * time[:, None].double()
        when = torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
        both = torch.cat([self.action_in_proj(x), when], dim=2)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))

    def to_compile(self) -> list[nn.Module]:
        """Not the attention: it is computed by functions, not by modules."""
        joint = self.vlm_with_expert
        layers = (*joint.vlm.model.text_model.layers, *joint.lm_expert.layers)
        return [joint.vlm.model.vision_model, *(layer.mlp for layer in layers)]

    def off_meta(self) -> None:
        """There is nothing: positions are computed where they are needed."""


def rotary(position: Tensor, size: int) -> tuple[Tensor, Tensor]:  # [B, L] -> cosine and sine [B, L, 1, size / 2]
    """The turn of each position."""
    scale = WAVELENGTH ** (2 / size * torch.arange(size // 2, dtype=torch.float32, device=position.device))
    angle = (position[..., None].float() / scale)[:, :, None]
    return angle.cos(), angle.sin()


def architecture(release: Release, config: FlowConfig) -> Architecture:
    """The network of a folder of SmolVLA. Raises UserError naming the file and the remedy for what does not fit."""
    path, document = release.folder / "config.json", release.config
    refuse(path, document, add_image_special_tokens=False)
    folders = vlm_folders(release.folder, config.vlm)
    where = next((folder / "config.json" for folder in folders[::-1] if (folder / "config.json").is_file()), path)
    if where == path:
        raise UserError(
            f"{folders[-1]} has no config.json of the model that the policy grew from: put config.json and "
            f"tokenizer.json of {document.get('vlm_model_name', SOURCE)} there, or name another folder, `vlm`"
        )
    vlm = read_json(where)
    if vlm.get("model_type") != "smolvlm":
        raise CheckpointError(
            f"{where} is of the architecture {vlm.get('model_type')!r}, not smolvlm; give another `vlm`"
        )
    try:
        known = _vlm(where, vlm, document.get("num_vlm_layers", 16))
        sizes = _sizes(path, document, known.text_config)
        with torch.device("meta"):
            network = SmolVLANetwork(known, sizes)
    except UserError:
        raise
    except Exception as error:  # of the library, which has classes of its own
        raise CheckpointError(f"{where} gives no network of SmolVLM ({one_line(error)[:200]}); {AGAIN}") from error
    remedy = f"the sizes are those of {where}: give the `vlm` that the policy grew from, or {AGAIN}"
    names = matched(release, network, _canonical, UNUSED, remedy)
    size = document.get("resize_imgs_with_padding")
    patches = known.vision_config.patch_size * known.scale_factor
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1] or size[0] < 1 or size[0] % patches:
        raise CheckpointError(
            f"{path}: resize_imgs_with_padding is {size}; it should be twice a multiple of {patches} pixels; {AGAIN}"
        )
    prompt = Prompt(folders, None, whole(path, document, "tokenizer_max_length"), SOURCE)
    counts = (whole(path, document, name) for name in ("n_action_steps", "num_steps"))
    return Architecture(network, names, features(path, document), size[0], *counts, prompt)


def _canonical(name: str) -> str:
    return name if name.startswith("model.") else f"model.{name}"


def _vlm(path: Path, document: dict[str, Any], layers: int) -> Any:
    """transformers' configuration, with the first layers of the language model alone; 0 or less: with all."""
    kept = {name: value for name, value in document.items() if name not in ("dtype", "torch_dtype")}
    known = library("transformers").SmolVLMConfig.from_dict(kept)
    if known.text_config.num_hidden_layers < layers:
        raise UserError(
            f"{path} has {known.text_config.num_hidden_layers} layers, and num_vlm_layers of the policy is {layers}; "
            "give another `vlm`"
        )
    if layers > 0:
        known.text_config.num_hidden_layers = layers
    return known


def _sizes(path: Path, document: dict[str, Any], text: Any) -> Sizes:
    layers, own = text.num_hidden_layers, document.get("num_expert_layers", -1)
    if isinstance(own, int) and own not in (layers, *range(-1, 1)):
        raise CheckpointError(
            f"{path}: num_expert_layers is {own}, and the language model has {layers}; only as many are known here"
        )
    every = document.get("self_attn_every_n_layers", -1)
    crossed = "cross" in document.get("attention_mode", "cross_attn")
    counts = [whole(path, document, name) for name in ("chunk_size", "max_action_dim", "max_state_dim")]
    width = int(text.hidden_size * document.get("expert_width_multiplier", 0.75))
    periods = float(document.get("min_period", 4e-3)), float(document.get("max_period", 4.0))
    return Sizes(*counts, layers, every, crossed, width, periods)


def _expert(text: Any, sizes: Sizes) -> dict[str, Any]:
    """What of the language model's configuration is another in the expert."""
    inner = int(4 * int(2 * sizes.width / 3))
    inner = SHARED * ((inner + SHARED - 1) // SHARED)
    return {
        "hidden_size": sizes.width,
        "intermediate_size": inner,
        "num_hidden_layers": sizes.layers,
        "head_dim": text.head_dim,
    }
