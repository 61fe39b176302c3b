"""A policy that sees its pictures altered: grey, with noise, in other light or colours."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.policy import Decision, Policy

GREY = 127
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as ITU-R BT.601 has it
Alter = Callable[[Tensor], Tensor]  # frames [..., H, W, 3] uint8 -> the same shape, uint8


class Altered(nn.Module):
    """A policy to which every picture is shown altered."""

    def __init__(self, policy: Policy, alter: Alter):
        super().__init__()
        self.policy, self.alter, self.chunk, self.views = policy, alter, policy.chunk, policy.views

    def read(self, texts: Sequence[str]) -> Any:
        return self.policy.read(texts)

    def act(self, seen: Observation, read: Any, key: Key, explore: bool) -> Decision:
        return self.policy.act(replace(seen, frames=self.alter(seen.frames)), read, key, explore)

    def log_prob(self, record: Any, action: Tensor) -> Tensor:
        return self.policy.log_prob(record, action)

    def trainable(self) -> list[nn.Parameter]:
        return self.policy.trainable()


def grey(frames: Tensor) -> Tensor:
    """Nothing to see."""
    return torch.full_like(frames, GREY)


def noise(deviation: float, seed: int) -> Alter:
    """White noise of this standard deviation, in levels of 255; other noise in every picture."""
    draw = torch.Generator().manual_seed(seed)
    return lambda frames: _levels(frames + deviation * torch.randn(frames.shape, generator=draw))


def brightness(factor: float) -> Alter:
    """Every level times the factor."""
    return lambda frames: _levels(factor * frames.float())


def contrast(factor: float) -> Alter:
    """The distance of every level from the mean luminance of the picture, times the factor."""
    return lambda frames: _levels(_between(_luma(frames).mean((-3, -2, -1), keepdim=True), frames, factor))


def saturation(factor: float) -> Alter:
    """The distance of every level from the luminance of its pixel, times the factor."""
    return lambda frames: _levels(_between(_luma(frames), frames, factor))


def _luma(frames: Tensor) -> Tensor:  # [..., H, W, 1] float32
    return (frames * torch.tensor(LUMA)).sum(-1, keepdim=True)


def _between(plain: Tensor, frames: Tensor, factor: float) -> Tensor:
    return plain + factor * (frames - plain)


def _levels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
