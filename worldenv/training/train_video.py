"""Train a video-diffusion U-Net on recorded episodes: the denoising loss of Karras et al. (2022)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.training.distillation import Denoiser, Denoising, Loss
from worldenv.training.windows import Window, Windows
from worldenv.worlds.video.network import Known, VideoUNet, log_normal


def learning(network: VideoUNet) -> nn.Module:
    """The same network, in which all learns but the autoencoder and the encoders."""
    network.requires_grad_(True)
    network.tokenizer.requires_grad_(False)
    network.conditioning.encoders.requires_grad_(False)
    return network


@dataclass(frozen=True)
class Batch:
    """B chunks of K frames, each with its past; on the device of the network."""

    past: Tensor  # [B, M, C, h, w] float32 latents
    clean: Tensor  # [B, K, C, h, w] float32 latents
    poses: Tensor  # [B, M + K, P] float32
    camera: Tensor  # [B, V, 3, 4] float32
    actions: Tensor  # [B, K, A] float32, in [-1, 1]
    features: dict[str, Tensor]  # [B, L, D] each, what the encoders see in the first frame

    def known(self, network: VideoUNet) -> Known:
        """What a pass of the network is given; parts of it that learn have a gradient."""
        tokens = network.conditioning.tokens(self.features)
        return network.know(self.past, self.poses, self.camera, self.actions, tokens)


def video_loss(network: VideoUNet, clips: Clips, batch: int) -> Loss:
    """Squared error of the clean latents of a chunk at a random noise level, weighted by 1 + 1 / sigma^2.

    Each example has a first frame, which the encoders look at, and a present one, at or after it; the memory is what it
    would be if the episode had begun at the first one. Raises UserError if no clip has so many steps, or if the camera
    is not known or moves.
    """
    config, draw = network.config, _batches(network, clips, batch)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part = draw(generator)
        drawn = torch.randn(batch, generator=generator)
        sigma = log_normal(config.sigma_mean, config.sigma_std, drawn).to(part.clean.device)
        noise, wide = _noise(part.clean, generator), sigma[:, None, None, None, None]
        error = (network.denoised(part.clean + wide * noise, sigma, part.known(network)) - part.clean).square()
        return ((1 + wide**-2) * error).mean(), {"mse": error.detach().mean().item()}

    return loss


def video_denoising(network: VideoUNet, clips: Clips, batch: int) -> Callable[[torch.Generator], Denoising]:
    """Draws batches for distillation, which begin with noise of sigma_max. Raises UserError as `video_loss` does."""
    draw = _batches(network, clips, batch)

    def task(generator: torch.Generator) -> Denoising:
        part = draw(generator)

        def denoiser(network: VideoUNet) -> Denoiser:
            known = part.known(network)
            return lambda noisy, sigma: network.denoised(noisy, noisy.new_full((batch,), sigma), known)

        return Denoising(network.config.sigma_max * _noise(part.clean, generator), part.clean, denoiser)

    return task


def _batches(network: VideoUNet, clips: Clips, batch: int) -> Callable[[torch.Generator], Batch]:
    config = network.config
    windows, known = Windows(clips, config.size, config.memory, config.chunk, batch), batch_of(network, clips)
    return lambda generator: known(windows(generator))


def batch_of(network: VideoUNet, clips: Clips) -> Callable[[Window], Batch]:
    """Makes the network's batch for a window. Raises UserError if the camera is not known or moves."""
    config, m, camera = network.config, network.config.memory, clips.still_camera()

    def read(window: Window) -> Batch:
        device, episode, index = network.place.device, window.episode, window.index
        frames = clips.frames_at(episode, index)[:, :, 0].to(device)
        latents = network.tokenizer.encode(frames.flatten(0, 1)).unflatten(0, index.shape).float()
        return Batch(
            latents[:, :m],
            latents[:, m:],
            clips.proprio[episode[:, None], index].to(device),
            camera[episode].to(device),
            clips.action_chunks(episode, window.present, config.chunk).to(device).clamp(-1, 1),
            network.conditioning.features(frames[:, 0]),
        )

    return read


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device)
