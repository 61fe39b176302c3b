"""pi0 (Black et al. 2024, arXiv 2410.24164): transformers' network, filled from LeRobot's folder or its own."""

import inspect
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.policy.flow.config import FlowConfig
from worldenv.policy.flow.layers import attended, heads, passed, turned
from worldenv.policy.flow.layout import Architecture, FlowNetwork, features, matched, refuse, vlm_folders, whole
from worldenv.policy.flow.prompt import Prompt
from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import AGAIN, Release, library

LONGEST = 48  # tokens of a prompt
VISION_HEADS = 16  # of SigLIP so400m, which no tensor's shape tells
UNUSED = r"model\.dit\.(lm_head|embed_tokens)\.weight"
NAMES = (  # this network's names, LeRobot's, new and old, and transformers' -> transformers' of today
    (r"^net\.", ""),
    (r"^(model\.)?paligemma_with_expert\.paligemma\.lm_head\.", "model.vlm.language_model.embed_tokens."),
    (r"^(model\.)?paligemma_with_expert\.paligemma\.(model\.)?", "model.vlm."),
    (r"^(model\.)?paligemma_with_expert\.gemma_expert\.(model\.)?", "model.dit."),
    (r"^(model\.)?((state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.)", r"embed_action_time.\2"),
    (r"^model\.(action_out_proj\.)", r"\1"),
    (r"^(model\.vlm\.language_model\.)model\.", r"\1"),
    (r"^(model\.vlm\.vision_tower\.)vision_model\.", r"\1"),
)


def canonical(name: str) -> str:
    """One name for all that a tensor is called in files and network."""
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    return name


class Prefix(NamedTuple):
    """What the steps need of one look."""

    cache: Any  # keys and values of the language model, of transformers' class
    kept: list[tuple[Tensor, Tensor]]  # the same tensors, of each layer
    mask: Tensor  # [B, L] int64, 0 where a prompt is padded
    state: Tensor  # [B, D]


class Pi0Network(FlowNetwork):
    """transformers' network, called as its own `sample_actions` calls it, with a gradient."""

    state_in_step = True
    head = "net.action_out_proj"
    expert = r"net\.(model\.dit|embed_action_time)\..*"

    def __init__(self, config: Any):  # a PI0Config of transformers
        super().__init__()
        self.net = library("transformers").PI0ForConditionalGeneration(config)
        self.net.model.dit.embed_tokens = None  # actions are no tokens
        self.horizon, self.numbers, self.state_numbers = config.chunk_size, config.max_action_dim, config.max_state_dim
        self.width = config.dit_config.hidden_size
        last = config.vlm_config.text_config.num_hidden_layers - 1  # of which keys and values alone are looked at
        self.unused = rf"net\.model\.vlm\.language_model\.layers\.{last}\.(self_attn\.[qo]_proj|mlp\..*)"
        calls = inspect.signature(type(self.net.model).forward).parameters
        self.cache_name = "cache" if "cache" in calls else "past_key_values"  # as transformers called it before 5.24

    @property
    def dtype(self) -> torch.dtype:
        return self.net.model.dit.norm.weight.dtype

    def seen(self, pixels: Tensor) -> Tensor:
        seen = self.net.model.vlm.get_image_features(pixels.flatten(0, 1).to(self.dtype)).pooler_output
        return seen.unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def prefix(self, pixels: Tensor, tokens: Tensor, state: Tensor) -> Prefix:
        x, mask = self._together(self.seen(pixels), tokens)
        out = self.net.model.vlm(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(mask),  # all see all
            use_cache=True,
        )
        cache = getattr(out, self.cache_name)
        return Prefix(cache, [(layer.keys, layer.values) for layer in cache.layers], mask, state.to(self.dtype))

    def velocity(self, prefix: Prefix, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        cache = prefix.cache
        embedded = self.net.embed_action_time(prefix.state, x.to(self.dtype), time)
        out = self.net.model(action_embeds=embedded, attention_mask=prefix.mask, **{self.cache_name: cache})
        hidden = out.last_hidden_state[:, -self.horizon :].float()
        # A step looks at the prefix and at no step before. What is cropped from a step without gradient has none.
        for layer, (keys, values) in zip(cache.layers, prefix.kept, strict=True):
            layer.keys, layer.values = keys, values
        return self.net.action_out_proj(hidden), hidden

    def kept(self, prefix: Prefix) -> dict[str, Tensor]:
        keys, values = (torch.stack(part, 1).transpose(2, 3) for part in zip(*prefix.kept, strict=True))
        return {"keys": keys, "values": values, "real": prefix.mask > 0, "state": prefix.state}

    def to_compile(self) -> list[nn.Module]:
        model = self.net.model
        return [model.vlm.vision_tower, model.vlm.language_model, model.dit]

    def _together(self, seen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:  # [B, L, D], [B, L] int64
        said = self.net.model.vlm.get_input_embeddings()(tokens.clamp(min=0))
        x = torch.cat([seen.to(said.dtype), said], dim=1)
        return x, torch.cat([torch.ones_like(x[:, : seen.shape[1], 0], dtype=torch.int64), (tokens >= 0).long()], 1)

    def language(self, seen: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, mask = self._together(seen, tokens)
        real = mask > 0
        everywhere = real[:, None].expand(-1, x.shape[1], -1)
        _, keys, values = _through(self.net.model.vlm.language_model, x, mask.cumsum(-1) - 1, everywhere)
        return keys, values, real

    def step(
        self, x: Tensor, time: Tensor, keys: Tensor, values: Tensor, real: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = torch.arange(1 + self.horizon, device=x.device)  # the state, then the actions
        block = (own == 0) | (own > 0)[:, None]  # [1 + K, 1 + K]: the state sees no action
        h = self.net.embed_action_time(state, x, time)
        rows, many = h.shape[:2]
        mask = torch.cat([real[:, None].expand(-1, many, -1), block.expand(rows, -1, -1)], dim=2)
        h, *_ = _through(self.net.model.dit, h, real.sum(1, keepdim=True) + own, mask, (keys, values))
        hidden = h[:, 1:].float()
        return self.net.action_out_proj(hidden), hidden

    def off_meta(self) -> None:
        model, config = self.net.model, self.net.config
        language, vision = model.vlm.language_model, model.vlm.vision_tower
        for part, own in ((model.dit, config.dit_config), (language, config.vlm_config.text_config)):
            part.rotary_emb = type(part.rotary_emb)(own)
        language.embed_tokens._buffers["embed_scale"] = torch.tensor(language.config.hidden_size**0.5)
        times = self.net.embed_action_time.sinusoid_embeds
        times._buffers["sinusoid_freq"] = times.compute_freqs(config)
        for part in vision.modules():
            if "position_ids" in part._buffers:
                part._buffers["position_ids"] = torch.arange(part.position_ids.shape[-1])[None]
        if left := [name for name, buffer in self.named_buffers() if buffer.is_meta]:
            raise UserError(f"this version of transformers has {left[0]} in pi0, which is not known here; take 5.24")


def _through(
    part: nn.Module,  # transformers' Gemma
    x: Tensor,  # [B, M, D]
    place: Tensor,  # [B, M] int64
    mask: Tensor,  # [B, M, P + M] bool
    past: tuple[Tensor, Tensor] | None = None,  # keys and values [B, layers, P, heads, size]; None: P is 0
) -> tuple[Tensor, Tensor, Tensor]:  # [B, M, D], and x's own keys and values [B, layers, M, heads, size]
    """What the layers make of x, in tensors alone: transformers' forward pass writes into a cache of its own class."""
    angle = (place[..., None].float() * part.rotary_emb.inv_freq)[:, :, None]
    turn = tuple(f(angle) * part.rotary_emb.attention_scaling for f in (torch.cos, torch.sin))
    kept = []
    for i, layer in enumerate(part.layers):
        n = layer.input_layernorm(x)
        own = turned(heads(layer, "k", n), turn), heads(layer, "v", n)
        kept.append(own)
        key, value = own if past is None else (torch.cat([p[:, i], o], 1) for p, o in zip(past, own, strict=True))
        x = passed(layer, x, attended(turned(heads(layer, "q", n), turn), key, value, mask))
    return part.norm(x), *(torch.stack(each, 1) for each in zip(*kept, strict=True))


def architecture(release: Release, config: FlowConfig) -> Architecture:
    """The network of a folder of pi0. Raises UserError naming the file and the remedy for what does not fit."""
    path, document = release.folder / "config.json", release.config
    refuse(path, document)
    if document.get("type") == "pi0":
        sizes, executed = lerobot_sizes(release), whole(path, document, "n_action_steps")
    else:
        sizes = {name: value for name, value in document.items() if name not in ("dtype", "torch_dtype")}
        executed = document.get("chunk_size", 50)
    made, folders = library("transformers").PI0Config, vlm_folders(release.folder, config.vlm)
    try:
        known = made.from_dict(sizes)
        with torch.device("meta"):
            network = Pi0Network(known)
    except UserError:
        raise
    except Exception as error:  # of the library, which has classes of its own
        raise CheckpointError(f"{path} gives no network of pi0 ({one_line(error)[:200]}); {AGAIN}") from error
    names = matched(release, network, canonical, UNUSED)
    prompt = Prompt(folders, "<bos>", document.get("tokenizer_max_length") or LONGEST, "google/paligemma-3b-pt-224")
    size = known.vlm_config.vision_config.image_size
    if document.get("image_resolution", [size, size]) != [size, size]:
        raise CheckpointError(
            f"{path}: image_resolution is {document['image_resolution']}, and the tower looks at {size} pixels; {AGAIN}"
        )
    return Architecture(network, names, features(path, document), size, executed, known.num_inference_steps, prompt)


def lerobot_sizes(release: Release) -> dict[str, Any]:
    """Fields of transformers' configuration; sizes are those of the tensors, of which LeRobot's names the variant."""
    path, document = release.folder / "config.json", release.config
    shapes = {canonical(key): shape for key, shape in release.shapes.items()}
    tower = "model.vlm.vision_tower"
    try:
        width, _, patch, _ = shapes[f"{tower}.embeddings.patch_embedding.weight"]
        side = round(shapes[f"{tower}.embeddings.position_embedding.weight"][0] ** 0.5)
        vocabulary = shapes["model.vlm.language_model.embed_tokens.weight"][0]
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": width,
            "intermediate_size": shapes[f"{tower}.encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": _layers(shapes, f"{tower}.encoder.layers."),
            "num_attention_heads": VISION_HEADS,
            "patch_size": patch,
            "image_size": side * patch,
            "vision_use_head": False,
        }
        text = _gemma(shapes, "model.vlm.language_model", vocabulary)
        vlm = {
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": vision,
            "projection_dim": text["hidden_size"],
            "image_token_id": vocabulary,
        }
        sizes = {"vlm_config": vlm, "dit_config": _gemma(shapes, "model.dit", vocabulary)}
        actions, states = (shapes[f"embed_action_time.{n}_proj.weight"][1] for n in ("action_in", "state"))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{release.folder} has no whole pi0: {error} is missing or of another kind; {AGAIN}"
        ) from None
    steps = next((name for name in ("num_inference_steps", "num_steps") if name in document), "num_inference_steps")
    counts = {"chunk_size": whole(path, document, "chunk_size"), "num_inference_steps": whole(path, document, steps)}
    periods = {name: document[name] for name in ("min_period", "max_period") if name in document}
    return sizes | counts | periods | {"max_action_dim": actions, "max_state_dim": states}


def _gemma(shapes: dict[str, tuple[int, ...]], part: str, vocabulary: int) -> dict[str, Any]:
    """Sizes of a Gemma with one head of keys, as all variants of pi0 have."""
    attention = f"{part}.layers.0.self_attn"
    size = shapes[f"{attention}.k_proj.weight"][0]
    return {
        "model_type": "gemma",
        "hidden_size": shapes[f"{part}.norm.weight"][0],
        "intermediate_size": shapes[f"{part}.layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": _layers(shapes, f"{part}.layers."),
        "num_attention_heads": shapes[f"{attention}.q_proj.weight"][0] // size,
        "num_key_value_heads": 1,
        "head_dim": size,
        "vocab_size": vocabulary,
    }


def _layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})
