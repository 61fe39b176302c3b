"""What a student of RLinf's Wan world model learns from: recorded episodes, with the past that its rollouts have."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.training.distillation import Denoiser, Denoising
from worldenv.training.windows import Window, Windows
from worldenv.worlds.wan.network import CONTEXT, KNOWN, WanNetwork
from worldenv.worlds.wan.world import WanWorld


def wan_denoising(world: WanWorld, clips: Clips, batch: int) -> Callable[[torch.Generator], Denoising]:
    """Chunks of random episodes for distillation, from noise alone. Raises UserError as `Windows` does.

    A pass knows the first frame and the last four, and the actions that led to these; the autoencoder makes the same
    latents of them whether or not the chunk's frames follow.
    """
    config, encode = world.config, torch.no_grad()(world.network.vae.encode)
    windows = Windows(clips, config.size, CONTEXT, config.chunk, batch)

    def task(generator: torch.Generator) -> Denoising:
        window, device = windows(generator), world.device
        frames = clips.frames_at(window.episode, window.index)[:, :, 0].to(device)
        latents = encode(world.turned(frames)).float()
        known, clean = latents[:, :, :KNOWN], latents[:, :, KNOWN:]
        new = clips.action_chunks(window.episode, window.present, config.chunk).clamp(-1, 1)
        actions = torch.cat([_led(world, clips, window), new], dim=1).to(device)

        def denoiser(network: WanNetwork) -> Denoiser:
            def denoise(noisy: Tensor, sigma: float) -> Tensor:
                given = torch.cat([known, noisy], dim=2).to(network.dtype)
                return noisy - sigma * network.velocity(given, sigma, actions).float()

            return denoise

        return Denoising(torch.randn(clean.shape, generator=generator).to(device), clean, denoiser)

    return task


def _led(world: WanWorld, clips: Clips, window: Window) -> Tensor:  # [B, CONTEXT, A]
    """The actions that led to the known frames; before the first frame, rest, as when an episode begins."""
    before = window.index[:, :CONTEXT] - 1
    led = clips.actions[window.episode[:, None], before.clamp(min=0)].clamp(-1, 1)
    return torch.where((before < window.first[:, None])[..., None], world.rest(led), led)
