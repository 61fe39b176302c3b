"""Train the causal world model: a tokenizer in closed form, a teacher of many steps, a student of one or two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.robot.robot import Robot
from worldenv.training.distillation import METHODS, Denoiser, Denoising, Loss, Method
from worldenv.training.share import Share
from worldenv.worlds.causal.network import CausalNetwork
from worldenv.worlds.causal.tokenizer import PatchTokenizer
from worldenv.worlds.causal.world import draw_maps

CHANGE_WEIGHT = 8.0  # how much more a token counts that differs from the one at its place in the frame before
CHANGE_LEVEL = 0.1  # what counts as different: mean absolute difference of a token's latent
CLEAN_SHARE = 0.5  # of the chunks are given as the past is when imagining: clean, but for MEMORY_NOISE
MEMORY_NOISE = 0.1  # highest noise level of such a chunk: blunts drift
TEACHER_STEPS = 8  # Euler steps of the teacher when it shows the student where a noise leads


@torch.no_grad()
def fit_tokenizer(tokenizer: PatchTokenizer, frames: Tensor) -> float:
    """Fit a linear tokenizer to frames [N, H, W, 3] uint8: the principal components of their patches, scaled so that
    latents have variance 1 on average. Returns its mean squared error (pixels in [-1, 1]).

    `Clips.sample_frames` gives some frames of a large data set; TOKENIZER_FRAMES are plenty. Raises ValueError if the
    frames have fewer patches than the tokenizer has channels.
    """
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


@dataclass
class Batch:
    """B clips of 1 + chunks * K frames, as the network reads them; on the device of the network."""

    clean: Tensor  # [B, N, L, C] latents
    maps: Tensor  # [B, N, 4, h, w] float32, action maps
    poses: Tensor  # [B, N, P] float32
    changed: Tensor  # [B, N - 1, L] bool, tokens that differ from those of the frame before
    episode: Tensor  # [B] int64
    index: Tensor  # [B, N] int64, steps of the frames


class Sampler:
    """Draws batches of random clips.

    Raises UserError if no clip has so many steps, if frames are of another size or if the camera is not known.
    """

    def __init__(self, network: CausalNetwork, robot: Robot, clips: Clips, share: Share, chunks: int):
        self.network, self.robot, self.clips, self.share = network, robot, clips, share
        self.steps = chunks * network.config.chunk
        self.first = clips.length - self.steps  # [N], the last step that a clip may begin at
        self.usable = (self.first >= 0).nonzero()[:, 0]
        if not len(self.usable):
            raise UserError(f"the longest clip has {int(clips.length.max())} steps; {chunks} chunks are {self.steps}")
        size = (network.config.image_size,) * 2
        if clips.frame_shape[1:] != size:
            raise UserError(f"the frames are {clips.frame_shape[1:]}; the world model's are {size[0]} pixels square")
        if clips.camera is None:
            raise UserError("the causal world model draws the gripper; the trajectories have no camera matrix")

    def __call__(self, generator: torch.Generator) -> Batch:
        network, clips, device = self.network, self.clips, self.network.time_angle.device
        size = self.share.size
        episode = self.usable[torch.randint(len(self.usable), (size,), generator=generator)]
        begin = (torch.rand(size, generator=generator) * (self.first[episode] + 1)).long()
        episode, begin = self.share.own(episode), self.share.own(begin)
        index = begin[:, None] + torch.arange(self.steps + 1)
        poses, camera = clips.proprio[episode[:, None], index].to(device), clips.cameras_at(episode, index).to(device)
        frames = clips.frames_at(episode, index)[:, :, 0].to(device)
        with torch.no_grad():
            clean = network.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, index.shape)
        maps = draw_maps(poses, camera, self.robot, network.config)
        changed = (clean[:, 1:] - clean[:, :-1]).abs().mean(-1) > CHANGE_LEVEL
        return Batch(clean, maps, poses, changed, episode, index)


def causal_loss(
    network: CausalNetwork, robot: Robot, clips: Clips, batch: int, chunks: int, ranks: Ranks = ALONE
) -> Loss:
    """Flow matching of the velocity noise - clean, squared error, over `chunks` chunks in a row of random episodes.

    Every chunk has a noise level of its own ("diffusion forcing", Chen et al. 2024), so each is at once what is to be
    denoised and the past of those after it. The first frame is clean, and each clip begins at a random step: the first
    frame of a clip stands for the observation that `CausalWorld.begin` is given.
    """
    share, k = Share(batch, ranks), network.config.chunk
    sampler = Sampler(network, robot, clips, share, chunks)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part = sampler(generator)
        level = torch.rand(batch, chunks, generator=generator)
        past = torch.rand(batch, chunks, generator=generator) < CLEAN_SHARE
        past[:, -1] = False
        level, past = share.own(torch.where(past, MEMORY_NOISE * level, level)), share.own(past)
        t = torch.cat([torch.zeros(len(level), 1), level.repeat_interleave(k, 1)], dim=1).to(part.clean.device)
        noise, mix = _noise(part.clean, share, generator), t[..., None, None]
        condition = network.condition(part.maps, part.poses)
        velocity = network.velocity_of_all((1 - mix) * part.clean + mix * noise, t, condition)
        error = (velocity - (noise - part.clean)).square().mean(-1)[:, 1:]  # [B, steps, L]
        counts = ~past.repeat_interleave(k, 1)[..., None].to(part.clean.device)
        weight = (1 + CHANGE_WEIGHT * part.changed) * counts
        return share.mean(error, weight), {"mse": share.mean(error.detach()).item()}

    return loss


def distillation_loss(
    student: CausalNetwork,
    teacher: CausalNetwork,
    robot: Robot,
    clips: Clips,
    batch: int,
    chunks: int,
    levels: Sequence[float],  # of the student's passes, falling, the first is 1
    teacher_steps: int = TEACHER_STEPS,
    ranks: Ranks = ALONE,
    method: Method = "trajectory",
) -> Loss:
    """`few_step_loss` or `consistency_loss` of a causal network, in which tokens that change count more."""
    share, many = Share(batch, ranks), torch.linspace(1, 0, teacher_steps + 1).tolist()
    draw = causal_denoising(student, robot, clips, chunks, share)
    return METHODS[method](student, teacher, draw, (*levels, 0.0), many, share)


def causal_denoising(
    student: CausalNetwork,
    robot: Robot,
    clips: Clips,
    chunks: int,
    share: Share,
    top: float = 1.0,  # the highest noise level
    other: Callable[[Batch], Denoiser] | None = None,  # makes the denoiser of a teacher of another kind
) -> Callable[[torch.Generator], Denoising]:
    """Draws batches for distillation.

    The last of `chunks` chunks is made from noise; those before it are recorded, with a little noise added. Between two
    passes of the student, fresh noise is added, as in `CausalWorld`.
    """
    sampler, batch, k = Sampler(student, robot, clips, share, chunks), share.size, student.config.chunk

    def draw(generator: torch.Generator) -> Denoising:
        part = sampler(generator)
        blur = (MEMORY_NOISE * share.own(torch.rand(batch, 1, generator=generator))).to(part.clean.device)
        past, drawn = part.clean[:, :-k], _noise(part.clean[:, 1:-k], share, generator)
        past = torch.cat([past[:, :1], _mixed(past[:, 1:], drawn, blur[..., None, None])], 1)

        def denoiser(network: nn.Module) -> Denoiser:
            if other is not None and network is not student:
                return other(part)
            condition = network.condition(part.maps, part.poses)

            def denoise(noisy: Tensor, t: float) -> Tensor:
                here = torch.full_like(noisy[..., 0, 0], t)
                level = torch.cat([0 * blur, blur.expand(-1, past.shape[1] - 1), here], dim=1)
                velocity = network.velocity_of_all(torch.cat([past, noisy], dim=1), level, condition)[:, -k:]
                return noisy - t * velocity

            return denoise

        def onward(noisy: Tensor, clean: Tensor, before: float, after: float) -> Tensor:
            return _mixed(clean, _noise(clean, share, generator), after)

        clean, weight = part.clean[:, -k:], 1 + CHANGE_WEIGHT * part.changed[:, -k:, :, None]
        return Denoising(top * _noise(clean, share, generator), clean, denoiser, weight, onward)

    return draw


def _noise(like: Tensor, share: Share, generator: torch.Generator) -> Tensor:
    return share.own(torch.randn(share.size, *like.shape[1:], generator=generator)).to(like.device)


def _mixed(clean: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
    return (1 - t) * clean + t * noise
