"""What an OpenVLA-OFT policy costs, from its folder's headers alone."""

from pathlib import Path

from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, matrices, size_of, transformer_flops
from worldenv.policy import lora
from worldenv.policy.openvla_oft.folder import OUTPUT, Found, inspect_policy
from worldenv.records.released import stored_bytes

PROMPT = 32  # tokens of an instruction, or so
INT64, FLOAT32 = 8, 4  # bytes


def openvla_cost(path: Path | str, suite: Suite, pixels: int) -> Cost:
    """Of a chunk that is decided on, and of one that is learnt from; pictures of `pixels` x `pixels` are recorded.

    Raises UserError as `inspect_policy` does.
    """
    return cost_of(inspect_policy(path, suite), suite, pixels)


def cost_of(found: Found, suite: Suite, pixels: int) -> Cost:
    """The same of a folder that has been looked through, or of sizes alone: with a dtype, no file is read."""
    network, config = found.network, found.config
    number = stored_bytes(found.release.entries, config.dtype)
    parameters, weight_bytes = size_of(network, number)
    heads = sum(size_of(head)[0] for head in found.heads.values())
    if "action_head" in found.heads and "scale_head" not in found.heads:
        heads += size_of(found.heads["action_head"])[0]
    learns = heads + lora.numbers(network, config.lora, config.layers, OUTPUT)
    numbers = config.chunk * len(found.bounds["action"].low)
    flops, saved = _pass(found, numbers)
    record = len(found.views) * 3 * pixels**2 + FLOAT32 * suite.robot.proprio_size + INT64 * PROMPT
    record += 0 if "action_head" in found.heads else INT64 * numbers
    # Frozen weights need no gradient of their own: back is as much as forward.
    return Cost(
        parameters + learns,
        weight_bytes + FLOAT32 * learns,
        learns,
        config.chunk,
        record_bytes=record,
        chunk_flops=flops,
        update_flops=2 * flops,
        update_bytes=number * saved,
    )


def _pass(found: Found, numbers: int) -> tuple[float, int]:
    """FLOPs of a pass over one moment, and the numbers that its gradient needs."""
    network, views = found.network, len(found.views)
    text = network.language_model.config
    flops, saved, patches = 0.0, 0, 0
    for tower in network.vision_backbone.values():
        patches, width = tower.pos_embed.shape[1:]
        blocks, tokens = len(tower.blocks), patches + tower.prefix
        hidden = tower.blocks[0].mlp["fc1"].out_features
        flops += views * transformer_flops(matrices(tower.blocks), tokens, blocks, width)
        flops += views * 2.0 * patches * tower.patch_embed["proj"].weight.numel()
        saved += views * tokens * blocks * (8 * width + 2 * hidden)
    tokens = 1 + views * patches + ("proprio_projector" in found.heads) + PROMPT + numbers + 1
    flops += 2.0 * views * patches * matrices(network.projector)
    layers, width = text.num_hidden_layers, text.hidden_size
    flops += transformer_flops(matrices(network.language_model.model), tokens, layers, width)
    saved += tokens * layers * (8 * width + 4 * text.intermediate_size)
    return flops, saved
