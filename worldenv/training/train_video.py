"""Train a video-diffusion U-Net on recorded episodes: the denoising loss of Karras et al. (2022)."""

import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.training.train_causal import Loss
from worldenv.worlds.video.network import VideoUNet, log_normal


def learning(network: VideoUNet) -> nn.Module:
    """The same network, in which all learns but the autoencoder and the encoders."""
    network.requires_grad_(True)
    network.tokenizer.requires_grad_(False)
    network.conditioning.encoders.requires_grad_(False)
    return network


def video_loss(network: VideoUNet, clips: Clips, batch: int) -> Loss:
    """Squared error of the clean latents of a chunk at a random noise level, weighted by 1 + 1 / sigma^2.

    Each example has a first frame, which the encoders look at, and a present one, at or after it; the memory is what it
    would be if the episode had begun at the first one. Raises UserError if no clip has so many steps, or if the camera
    is not known.
    """
    config, k, m = network.config, network.config.chunk, network.config.memory
    usable = (clips.length >= k).nonzero()[:, 0]
    if not len(usable):
        raise UserError(f"the longest clip has {int(clips.length.max())} steps; a chunk is {k}")
    if clips.camera is None:
        raise UserError("the world model draws the gripper; the trajectories have no camera matrix")
    if clips.frame_shape[1:] != (config.size, config.size):
        raise UserError(f"the frames are {clips.frame_shape[1:]}; the world model's are {config.size} pixels square")

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        device = network.place.device
        episode = usable[torch.randint(len(usable), (batch,), generator=generator)]
        present = (torch.rand(batch, generator=generator) * (clips.length[episode] - k + 1)).long()
        first = (torch.rand(batch, generator=generator) * (present + 1)).long()
        index = _indices(first, present, m, k)
        frames = clips.frames_at(episode, index)[:, :, 0].to(device)
        poses = clips.proprio[episode[:, None], index].to(device)
        actions = clips.action_chunks(episode, present, k).to(device)
        latents = network.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, index.shape).float()
        past, clean = latents[:, :m], latents[:, m:]
        tokens = network.conditioning.tokens(network.conditioning.features(frames[:, 0]))
        known = network.know(past, poses, clips.camera[episode].to(device), actions.clamp(-1, 1), tokens)
        drawn = torch.randn(batch, generator=generator)
        sigma = log_normal(config.sigma_mean, config.sigma_std, drawn).to(device)
        noise, wide = torch.randn(clean.shape, generator=generator).to(device), sigma[:, None, None, None, None]
        error = (network.denoised(clean + wide * noise, sigma, known) - clean).square()
        return ((1 + wide**-2) * error).mean(), {"mse": error.detach().mean().item()}

    return loss


def _indices(first: Tensor, present: Tensor, memory: int, chunk: int) -> Tensor:  # [B], [B] -> [B, M + K]
    """Steps of the memory's frames, the first one and the latest before and at present, and of the chunk's."""
    latest = present[:, None] + torch.arange(2 - memory, 1)
    latest = torch.maximum(latest, first[:, None])
    return torch.cat([first[:, None], latest, present[:, None] + 1 + torch.arange(chunk)], dim=1)
