"""Train the causal simulator: a tokenizer in closed form, then all chunks of a clip, each at its own noise level."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.ops.action_map import Gripper, action_map
from worldenv.worlds.causal.network import Causal
from worldenv.worlds.causal.tokenizer import PatchTokenizer

CHANGE_WEIGHT = 8.0  # how much more a token counts that differs from the one at its place in the frame before
CHANGE_LEVEL = 0.1  # what counts as different: mean absolute difference of a token's latent
CLEAN_SHARE = 0.5  # of the chunks are given as the past is when imagining: clean, but for MEMORY_NOISE
MEMORY_NOISE = 0.1  # highest noise level of such a chunk: blunts drift


@torch.no_grad()
def fit_tokenizer(tokenizer: PatchTokenizer, frames: Tensor, seed: int, count: int = 512) -> float:
    """Make a linear tokenizer the best there is for these frames [N, T, H, W, 3]: their patches' principal components,
    scaled so that latents have variance 1 on average. Returns its mean squared error (pixels in [-1, 1]).

    Raises ValueError if the frames have fewer patches than the tokenizer has channels.
    """
    frames, generator = frames.flatten(0, 1), torch.Generator().manual_seed(seed)
    frames = frames[torch.randint(len(frames), (count,), generator=generator)]
    whole = PatchTokenizer(tokenizer.patch, 3 * tokenizer.patch**2)
    whole.encoder.weight.data = torch.eye(whole.channels)
    patches = whole.encode(frames).flatten(0, 1)
    if len(patches) < tokenizer.channels:
        raise ValueError(f"{len(patches)} patches are too few for {tokenizer.channels} channels; give more frames")
    mean = patches.mean(0)
    directions = torch.linalg.svd(patches - mean, full_matrices=False)[2][: tokenizer.channels]
    scale = ((patches - mean) @ directions.T).square().mean().sqrt()
    tokenizer.encoder.weight.copy_(directions / scale)
    tokenizer.decoder.weight.copy_((directions * scale).T)
    tokenizer.encoder.bias.copy_(-(directions @ mean) / scale)
    tokenizer.decoder.bias.copy_(mean)
    again = tokenizer.decoder(tokenizer.encoder(patches))
    return (again - patches).square().mean().item()


def causal_loss(
    network: Causal, clips: Clips, projection: Tensor, batch: int, chunks: int
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Flow matching of the velocity noise - clean, squared error, over `chunks` chunks in a row of random episodes.

    Every chunk has a noise level of its own ("diffusion forcing", Chen et al. 2024), so each is at once what is to be
    denoised and the past of those after it. The first frame is clean, and each pass begins at a random step: what comes
    first in a pass is what `CausalWorld.begin` is given.

    Raises ValueError if no clip has so many steps.
    """
    config = network.config
    steps, size = chunks * config.chunk, config.image_size // config.map_shrink
    first = clips.length - steps  # [N], the last step that a pass may begin at
    if not (first >= 0).any():
        raise ValueError(f"the longest clip has {int(clips.length.max())} steps; {chunks} chunks are {steps}")
    usable = (first >= 0).nonzero()[:, 0]

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode = usable[torch.randint(len(usable), (batch,), generator=generator)]
        begin = (torch.rand(batch, generator=generator) * (first[episode] + 1)).long()
        index = begin[:, None] + torch.arange(steps + 1)
        poses = clips.proprio[episode[:, None], index]
        camera = projection.expand(poses[..., 0].numel(), 1, 3, 4)
        maps = action_map(poses.flatten(0, 1), camera, Gripper(), size, size)[:, 0].unflatten(0, poses.shape[:2])
        with torch.no_grad():
            clean = network.tokenizer.encode(clips.frames[episode[:, None], index].flatten(0, 1))
        clean = clean.unflatten(0, poses.shape[:2])  # [B, N, L, C]
        level = torch.rand(batch, chunks, generator=generator)
        past = torch.rand(batch, chunks, generator=generator) < CLEAN_SHARE
        past[:, -1] = False
        level = torch.where(past, MEMORY_NOISE * level, level).repeat_interleave(config.chunk, 1)
        t = torch.cat([torch.zeros(batch, 1), level], dim=1)
        noise, mix = torch.randn(clean.shape, generator=generator), t[..., None, None]
        velocity = network.velocity_of_all((1 - mix) * clean + mix * noise, t, network.condition(maps, poses))
        error = (velocity - (noise - clean)).square().mean(-1)[:, 1:]  # [B, steps, L]
        changed = (clean[:, 1:] - clean[:, :-1]).abs().mean(-1) > CHANGE_LEVEL
        weight = (1 + CHANGE_WEIGHT * changed) * ~past.repeat_interleave(config.chunk, 1)[..., None]
        return (weight * error).sum() / weight.sum(), {"mse": error.detach().mean().item()}

    return loss
