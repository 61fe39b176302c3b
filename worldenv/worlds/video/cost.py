"""What a video-diffusion U-Net costs, from its folder's headers alone."""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, size_of
from worldenv.records.released import stored_bytes
from worldenv.worlds.video.folder import Found, inspect_video, joined
from worldenv.worlds.video.network import VideoUNet

FLOAT32 = 4  # bytes


def video_cost(path: Path | str, suite: Suite, chunk: int) -> Cost:
    """Of a policy's chunk of `chunk` actions. Raises UserError as `inspect_video` does."""
    found = inspect_video(path, suite)
    config, parts = found.config, {"unet": found.unet, "vae": found.vae, **found.encoders}
    with torch.device("meta"):
        outlines = {name: one.outline() for name, one in found.encoders.items()}
        network = joined(found, found.unet.module, found.vae.module, outlines, {})
    network.to("meta")  # what diffusers makes elsewhere, too: its mixing factors
    numbers = {name: stored_bytes(one.release.entries, config.dtype) for name, one in parts.items()}
    modules = {"unet": network.unet, "vae": network.tokenizer.model, **outlines}
    sizes = {name: size_of(module, numbers[name]) for name, module in modules.items()}
    parameters, weight_bytes = map(sum, zip(*sizes.values(), strict=True))
    ours = size_of(network)[0] - parameters  # projections and the tokens of actions
    tokens, flops = _pass(found, network)
    side, width = config.size // network.tokenizer.shrink, network.place.shape[1]
    slot = numbers["unet"] * (config.memory * network.tokenizer.channels * side**2 + tokens * width)
    slot += FLOAT32 * config.memory * suite.robot.proprio_size
    return Cost(
        parameters + ours,
        weight_bytes + numbers["unet"] * ours,
        slot_bytes=slot,
        chunk_flops=chunk / config.chunk * flops,
    )


def _pass(found: Found, network: VideoUNet) -> tuple[int, float]:
    """Tokens of an episode's first picture; FLOPs of a pass: its denoising steps, and the frames that are decoded."""
    config, robot = found.config, found.robot
    channels, side = network.tokenizer.channels, config.size // network.tokenizer.shrink
    latents, camera = torch.zeros(1, config.memory, channels, side, side), torch.zeros(1, 1, 3, 4)
    poses, actions = torch.zeros(1, config.memory + config.chunk, robot.proprio_size), torch.zeros(1, config.chunk, 1)
    actions = actions.expand(-1, -1, robot.action_size)
    given = [tensor.to("meta") for tensor in (latents, poses, camera, actions)]
    with torch.no_grad():
        frame = torch.zeros(1, config.size, config.size, 3, dtype=torch.uint8, device="meta")
        tokens = network.conditioning.tokens(network.conditioning.features(frame))
        with FlopCounterMode(display=False) as step:
            known = network.know(*given, tokens)
            noisy = torch.zeros(1, config.chunk, channels, side, side, device="meta")
            network.denoised(noisy, torch.ones(1, device="meta"), known)
        with FlopCounterMode(display=False) as pictures:
            decoded = config.chunk if config.decode == "all" else 1
            network.tokenizer.pixels(noisy[0, :decoded])
    flops = config.steps * step.get_total_flops() + pictures.get_total_flops()
    return sum(seen.shape[1] for seen in tokens), float(flops)
