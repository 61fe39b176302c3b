"""What the composer costs, from its sizes alone."""

import torch

from worldenv.interfaces.observation import Observation
from worldenv.nn.cost import Cost, picture_flops, size_of
from worldenv.worlds.composer.contact import ContactNetwork
from worldenv.worlds.composer.layer import SIZE
from worldenv.worlds.composer.network import ComposerNetwork
from worldenv.worlds.composer.passes import passes_of
from worldenv.worlds.composer.world import ComposerWorld


def composer_cost(world: ComposerWorld, chunk: int) -> Cost:
    """Of a policy's chunk of `chunk` actions.

    Contact is counted in every pass; on a CPU only episodes whose gripper is low, or holds a thing, compute it.
    """
    network, side = world.network, world.network.config.image_size
    with torch.device("meta"):
        frames, text = torch.zeros(1, 1, side, side, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        first = Observation(frames, torch.zeros(1, world.robot.proprio_size), torch.zeros(1, 1, 3, 4), text)
    memory = world.begin(first, chunk)
    once, step = _before(network), _step(network)
    flops = passes_of(chunk, world.chunk) * (once + _contact(network.contact) + len(world.levels) * step)
    return Cost(*size_of(network), slot_bytes=memory.bytes_each(), chunk_flops=flops)


def _before(network: ComposerNetwork) -> float:
    """FLOPs of what a pass computes before it denoises."""
    fine = (network.config.image_size // 2) ** 2
    return picture_flops(network.see_pictures, network.see_map, network.poses, places=fine)


def _step(network: ComposerNetwork) -> float:
    """FLOPs of a denoising step."""
    config = network.config
    fine, middle, coarse = ((config.image_size // shrink) ** 2 for shrink in (2, 4, 8))
    at_fine = network.see_noisy, network.fine, network.fine_out, network.compose, network.noise_level
    at_middle = network.down1, network.middle, network.middle_out, network.up1
    at_coarse = network.down2, network.layers, network.up2
    attention = 4.0 * config.layers * coarse**2 * config.widths[2]
    levels = (at_fine, fine), (at_middle, middle), (at_coarse, coarse)
    return attention + sum(picture_flops(*modules, places=places) for modules, places in levels)


def _contact(network: ContactNetwork) -> float:
    """FLOPs of deciding what the gripper takes along."""
    sides = [SIZE >> level for level in range(len(network.down))]
    ways = [*zip(network.down, sides, strict=True), *zip(network.up, sides[-2:0:-1], strict=True)]
    ways += [(network.masks, SIZE), (network.plan, 1), (network.decide, 1)]
    return sum(picture_flops(module, places=side**2) for module, side in ways)
