"""The parts of the pair that users download, by their sizes alone: outlines without memory, then random weights.

No file is read and nothing is fetched. The weights are drawn where they are to be used, in their final dtype, so no
copy of them is ever in host memory.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from causal import ROBOT
from torch import nn

from worldenv.data.formats.rlinf import RlinfConfig
from worldenv.nn.attention import name_in
from worldenv.nn.cost import Cost
from worldenv.policy.openvla_oft import cost as policy_cost
from worldenv.policy.openvla_oft.config import OpenVLAConfig, OpenVLAConventions
from worldenv.policy.openvla_oft.folder import Found as FoundPolicy
from worldenv.policy.openvla_oft.network import Network, TowerSizes, language_config
from worldenv.policy.openvla_oft.policy import OpenVLATokens
from worldenv.policy.openvla_oft.prompt import Prompt
from worldenv.policy.openvla_oft.statistics import Bounds
from worldenv.records.released import Release, library, put
from worldenv.reflector.transformers_vlm import VlmConfig, VlmReflector
from worldenv.reflector.vlm import cost as judge_cost
from worldenv.reflector.vlm.families import Qwen25Vl
from worldenv.reflector.vlm.pixels import Look
from worldenv.worlds.components import attend
from worldenv.worlds.wan import cost as world_cost
from worldenv.worlds.wan.folder import Found as FoundWan
from worldenv.worlds.wan.network import WanNetwork, WanSizes
from worldenv.worlds.wan.vae import MEAN, STD, WanVae, build_vae
from worldenv.worlds.wan.world import WanWorld

DTYPE = torch.bfloat16
VIEW, PAD = "agentview", 32000
THEIRS = OpenVLAConventions(resize="bicubic", crop=1.0, stop=False)  # those of RLinf's one-view policy


@dataclass(frozen=True)
class Sizes:
    """Of the three parts."""

    towers: tuple[TowerSizes, TowerSizes]
    llama: dict[str, Any]  # what differs from Llama 2, 7B
    lora: int
    wan: WanSizes
    vae: dict[str, Any]
    rlinf: RlinfConfig
    text: dict[str, Any]  # of the judge
    vision: dict[str, Any]
    judge: VlmConfig


def _vae(width: int, decoder: int, factors: list[int], blocks: int) -> dict[str, Any]:
    return {
        "base_dim": width,
        "decoder_base_dim": decoder,
        "z_dim": len(MEAN),
        "dim_mult": factors,
        "num_res_blocks": blocks,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": list(MEAN),
        "latents_std": list(STD),
    }


def _qwen(
    text: tuple[int, ...], rope: list[int], vision: tuple[int, ...], window: int, full: list[int]
) -> dict[str, dict[str, Any]]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    of_text = dict(zip((*names, "num_key_value_heads", "max_position_embeddings"), text, strict=True))
    of_text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": rope}
    of_text |= {"bos_token_id": None, "eos_token_id": None}  # the defaults lie outside of a tiny vocabulary
    of_vision = dict(zip(("depth", "hidden_size", "intermediate_size", "num_heads"), vision, strict=True))
    of_vision |= {"out_hidden_size": text[1], "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return {"text": of_text, "vision": of_vision | {"window_size": window, "fullatt_block_indexes": full}}


REAL = Sizes(  # OpenVLA-OFT 7B, a Wan transformer of 1.3B with the autoencoder of Wan 2.2, Qwen2.5-VL-7B
    towers=(TowerSizes(1024, 14, 16, 4096, 23, 4, 16), TowerSizes(1152, 14, 16, 4304, 26, None, 16)),
    llama={},
    lora=32,
    wan=WanSizes(1536, 12, 30, 8960, 256, len(MEAN), (1, 2, 2), 7),
    vae=_vae(160, 256, [1, 2, 4, 4], 2),
    rlinf=RlinfConfig(dtype="bfloat16"),
    judge=VlmConfig(vlm=Path("random"), dtype="bfloat16"),
    **_qwen((152_064, 3584, 18_944, 28, 28, 4, 128_000), [16, 24, 24], (32, 1280, 3420, 16), 112, [7, 15, 23, 31]),
)
TINY = Sizes(
    towers=(TowerSizes(32, 14, 2, 64, 2, 4, 16), TowerSizes(48, 14, 2, 40, 1, None, 16)),
    llama={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    lora=4,
    wan=WanSizes(24, 2, 2, 32, 16, len(MEAN), (1, 2, 2), 7),
    vae=_vae(4, 4, [1, 1, 2, 2], 1),
    rlinf=RlinfConfig(size=64, head=12, steps=1, dtype="bfloat16"),
    judge=VlmConfig(vlm=Path("random"), side=28, samples=4, every=8, dtype="bfloat16"),
    **_qwen((512, 32, 64, 2, 4, 2, 4096), [1, 1, 2], (2, 32, 64, 4), 56, [1]),
)


@dataclass(frozen=True)
class Outline:
    """Of a part: what it costs, and how it is made on a device. Its networks are on the device meta."""

    cost: Cost
    network: nn.Module  # without adapters
    make: Callable[[torch.device], Any]


def outlines(sizes: Sizes, folder: Path) -> dict[str, Outline]:
    """The parts by role; `folder` is an empty one, for the tokenizer. Raises UserError if a library is missing."""
    for name in ("transformers", "diffusers", "peft"):
        library(name)
    suite = SimpleNamespace(name="libero_spatial", robot=ROBOT, views=(VIEW,), size=sizes.rlinf.size)
    policy = _policy(sizes, folder, suite)
    return {"policy": policy, "world": _world(sizes, policy.cost.chunk), "reflector": _judge(sizes, policy.cost.chunk)}


def _policy(sizes: Sizes, folder: Path, suite: Any) -> Outline:
    _write_tokenizer(folder / "tokenizer.json")
    text = language_config(sizes.llama)
    with torch.device("meta"):
        network = Network(sizes.towers, text, PAD)
    config = OpenVLAConfig(lora=sizes.lora, dtype="bfloat16", conventions=THEIRS)
    side, halves = sizes.towers[0].side * sizes.towers[0].patch, ((0.5,) * 3,) * 2
    bounds = {"action": Bounds((-1.0,) * 7, (1.0,) * 7, (True,) * 6 + (False,))}
    prompt, first = Prompt(folder, PAD), text.vocab_size - 64 - 256
    given = config, (VIEW,), side, halves, halves, bounds, prompt, 256, first, network, {}, {}
    found = FoundPolicy(folder, Release(folder, {}, {}), *given)

    def make(device: torch.device) -> OpenVLATokens:
        _draw(network, device)
        network.off_meta()
        return OpenVLATokens(found, 0, []).to(device)

    return Outline(policy_cost.cost_of(found, suite, suite.size), network, make)


def _world(sizes: Sizes, chunk: int) -> Outline:
    transformer, vae = sizes.wan.build(), build_vae(sizes.vae)
    found = FoundWan(Path(), sizes.rlinf, sizes.wan, Release(Path(), {}, {}), transformer, vae)

    def make(device: torch.device) -> WanWorld:
        _draw(transformer, device)
        _draw(vae, device)
        sizes.wan.finish(transformer)
        attend(transformer)
        network = WanNetwork(transformer, WanVae(vae)).requires_grad_(False).eval().to(device)
        return WanWorld(network, ROBOT, sizes.rlinf, VIEW)

    return Outline(world_cost.cost_of(found, chunk), nn.ModuleList([transformer, vae]), make)


def _judge(sizes: Sizes, chunk: int) -> Outline:
    transformers = library("transformers")
    config = transformers.Qwen2_5_VLConfig(
        text_config=sizes.text, vision_config=sizes.vision, tie_word_embeddings=False
    )
    network_class, settings = transformers.Qwen2_5_VLForConditionalGeneration, sizes.judge
    with torch.device("meta"):
        outline = network_class(config)
    look = Look((0.5,) * 3, (0.5,) * 3, 3, {"min_pixels": 28**2, "max_pixels": 12_845_056})

    def judge(network: nn.Module) -> Qwen25Vl:
        size = sizes.text["vocab_size"]
        budget = settings.memory_mb * 2**20
        return Qwen25Vl(network, lambda text: _ids(text, size), look, settings.side, settings.question, budget)

    def make(device: torch.device) -> VlmReflector:
        with torch.device(device):  # its own initialisation: rotary tables too
            network = network_class._from_config(config, dtype=DTYPE, attn_implementation=name_in("transformers"))
        return VlmReflector(judge(network.requires_grad_(False).eval()), settings).eval()

    seen = judge(outline).size(sizes.rlinf.size, sizes.rlinf.size)
    return Outline(judge_cost.cost_of(outline, seen, settings, DTYPE.itemsize, chunk), outline, make)


def _draw(network: nn.Module, device: torch.device) -> None:
    """Give a network of the device meta random weights that keep the size of what goes through it."""
    for name, outline in list(network.named_parameters()):
        tensor = torch.empty(outline.shape, dtype=DTYPE, device=device)
        if tensor.numel() == len(tensor):  # of a norm, or a bias
            tensor.fill_(float(not name.endswith("bias")))
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        put(network, name, tensor)


def _ids(text: str, size: int) -> list[int]:
    """A token for every word and mark, so prompts are about as long as with the model's own tokenizer."""
    return [zlib.crc32(part.encode()) % size for part in re.findall(r"<[^<>]+>| ?\w+|\S", text)]


def _write_tokenizer(path: Path) -> None:
    tokenizers = library("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
