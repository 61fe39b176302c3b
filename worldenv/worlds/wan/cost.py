"""What a Wan world model costs, from its folder's headers alone."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from worldenv.data.formats.rlinf import GROUP
from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, matrices, size_of, transformer_flops
from worldenv.records.released import stored_bytes
from worldenv.worlds.wan.folder import Found, inspect_wan
from worldenv.worlds.wan.network import CONTEXT, KNOWN
from worldenv.worlds.wan.vae import WanVae

FLOAT32 = 4  # bytes


def wan_cost(path: Path | str, suite: Suite, chunk: int) -> Cost:
    """Of a policy's chunk of `chunk` actions. Raises UserError as `inspect_wan` does."""
    return cost_of(inspect_wan(path, suite), chunk)


def cost_of(found: Found, chunk: int) -> Cost:
    """The same of a folder that has been looked through, or of sizes alone: with a dtype, no file is read."""
    config, sizes = found.config, found.sizes
    number = stored_bytes(found.release.entries, config.dtype)
    weights = [size_of(module, number) for module in (found.transformer, found.vae)]
    side = config.size // found.vae.config.scale_factor_spatial
    latent, new = sizes.channels * side**2, config.chunk // GROUP
    slot = number * KNOWN * latent + FLOAT32 * CONTEXT * sizes.actions
    slot += 3 * config.size**2 if config.context == "frames" else 0
    tokens = (KNOWN + new) * side**2 // (sizes.patch[1] * sizes.patch[2])
    step = transformer_flops(matrices(found.transformer.blocks), tokens, sizes.layers, sizes.width)
    flops = chunk / config.chunk * (config.steps * step + _pictures(found, side, new))
    return Cost(*map(sum, zip(*weights, strict=True)), slot_bytes=slot, chunk_flops=flops)


def _pictures(found: Found, side: int, new: int) -> float:
    """FLOPs of decoding a pass, and of encoding what the next one is to know."""
    config, channels = found.config, found.sizes.channels
    vae: nn.Module = WanVae(found.vae).to("meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        vae.decode(torch.zeros(1, channels, KNOWN + new, side, side, device="meta"), skip=KNOWN)
        if config.context == "frames":
            shape = 1, CONTEXT, config.size, config.size, 3
            vae.encode(torch.zeros(shape, dtype=torch.uint8, device="meta"))
    return float(counted.get_total_flops())
