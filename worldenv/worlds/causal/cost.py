"""What a pass of the causal world model costs, from its sizes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, size_of
from worldenv.worlds.causal.latents import load_causal_latents
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork

BF16 = 2  # bytes


@dataclass(frozen=True)
class Pass:
    """One pass of the network over one episode's chunk."""

    matrix_flops: float
    attention_flops: float
    activation_bytes: float  # read and written between matrix products, each tensor once
    ring_bytes: float  # keys and values read once a layer


def count(config: CausalConfig, length: int) -> Pass:
    """`length` tokens of the ring are attended."""
    m, d, layers = config.tokens * config.chunk, config.width, config.layers
    qkv = (config.heads + 2 * config.key_heads) * config.head
    a_layer = d * qkv + d * d + 8 * d * d  # multiply-adds a token
    ends = 2 * config.channels * d
    attention = 4 * m * length * config.heads * config.head * layers
    # adaln reads sum and branch and writes both twice; qkv, queries, attention's and merge's results; 4 d twice (gelu)
    numbers = layers * m * (8 * d + 2 * qkv + 4 * d + 4 * 4 * d)
    a_number = 1 + 4 / config.head if config.cache == "int8" else BF16
    ring = 2 * layers * config.key_heads * length * config.head * a_number
    return Pass(2.0 * m * (layers * a_layer + ends), float(attention), float(BF16 * numbers), ring)


def causal_cost(config: CausalConfig, levels: Sequence[float], chunk: int) -> Cost:
    """Of the world model, for a policy's chunk of `chunk` actions: the denoising steps, and a pass that remembers."""
    with torch.device("meta"):
        network = CausalNetwork(config)
        ring = network.new_ring(1).bytes_each()
    one, passes = count(config, config.places), (len(levels) + 1) * chunk / config.chunk
    flops = passes * (one.matrix_flops + one.attention_flops)
    return Cost(*size_of(network), slot_bytes=ring, chunk_flops=flops)


def latents_cost(folder: Path | str, suite: Suite, chunk: int) -> Cost:
    """The same in an autoencoder's latents, with the frames that it decodes.

    The folder is loaded, which is small. Raises UserError as `load_causal_latents` does.
    """
    world = load_causal_latents(folder, suite)
    config, pictures = world.network.config, world.network.tokenizer.frames
    sizes = size_of(world.network), size_of(pictures)
    parameters, weight_bytes = (sum(pair) for pair in zip(*sizes, strict=True))
    cost, side = causal_cost(config, world.levels, chunk), config.image_size // pictures.shrink
    latents = torch.zeros(chunk if world.decode == "all" else 1, pictures.channels, side, side, device="meta")
    with FlopCounterMode(display=False) as decoding:
        pictures.to("meta").pixels(latents)
    flops = cost.chunk_flops + decoding.get_total_flops()
    return replace(cost, parameters=parameters, weight_bytes=weight_bytes, chunk_flops=flops)
