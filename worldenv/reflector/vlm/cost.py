"""What a released vision-language model costs as a judge, from its configuration and its files' headers alone."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from worldenv.nn.cost import Cost, matrices, size_of, transformer_flops
from worldenv.records.released import stored_bytes
from worldenv.reflector.transformers_vlm import VlmConfig, settings_of
from worldenv.reflector.vlm.load import inspect_vlm

PROMPT = 64  # tokens of the task, the question and the chat around them, or so
AROUND = 2  # tokens before and after a frame, at most
VECTORS = 11  # that an episode keeps in mode features
FLOAT32, INT64 = 4, 8  # bytes


def vlm_cost(path: Path | str, chunk: int, pixels: int) -> Cost:
    """Of a policy's chunk of `chunk` frames of `pixels` x `pixels`, in an episode of which all kept frames are there.

    The language model is counted as if every question read the whole prompt. Raises UserError for a folder that is no
    such model.
    """
    settings = settings_of(Path(path).expanduser())
    found = inspect_vlm(settings.vlm)
    with torch.device("meta"):
        network = found.network(found.config)
    entries = found.release.entries
    number = stored_bytes(entries, "stored" if settings.dtype == "file" else settings.dtype)
    parameters = sum(torch.Size(entry.shape).numel() for entry in entries.values())
    asked = SimpleNamespace(network=network, look=found.look, side=settings.side)
    cost = cost_of(network, found.family.size(asked, pixels, pixels), settings, number, chunk)
    return replace(cost, parameters=parameters, weight_bytes=number * parameters)


def cost_of(
    network: nn.Module,  # transformers' own, on any device
    size: tuple[int, int],  # pixels of a frame as its tower sees it
    settings: VlmConfig,
    number: int,  # bytes of a weight
    chunk: int,
) -> Cost:
    """The same of a network, whose files need not be there."""
    config, language = network.config, _language(network)
    text, vision, (height, width) = config.get_text_config(), config.vision_config, size
    seen, merge = (height // vision.patch_size) * (width // vision.patch_size), _merge(config)
    tokens = math.ceil(height // vision.patch_size / merge) * math.ceil(width // vision.patch_size / merge)
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    flops = chunk * transformer_flops(matrices(network.model) - matrices(language), seen, layers, vision.hidden_size)
    slot = VECTORS * FLOAT32 * text.hidden_size
    if settings.mode != "features":
        read = PROMPT + settings.samples * (tokens + AROUND)
        row = text.hidden_size * (1 + len(getattr(vision, "deepstack_visual_indexes", None) or ()))
        slot = number * settings.samples * tokens * row + INT64 * PROMPT
        question = transformer_flops(matrices(language), read, text.num_hidden_layers, text.hidden_size)
        flops += chunk / settings.every * question
    return Cost(*size_of(network, number), slot_bytes=slot, chunk_flops=flops)


def _language(network: nn.Module) -> nn.Module:
    inner = network.model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def _merge(config: object) -> int:
    """Patches along a side of what becomes one token."""
    of_qwen = getattr(config.vision_config, "spatial_merge_size", None)
    return of_qwen or getattr(config, "scale_factor", None) or 2  # the last: of LLaVA-OneVision's videos
