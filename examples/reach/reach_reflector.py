"""A reflector in one file: the nearer the pen is to the marker that the instruction names, the higher the reward."""

from dataclasses import dataclass

import torch
from torch import Tensor

import worldenv


@dataclass
class Goal(worldenv.Slots):
    """What the reflector remembers of E episodes."""

    place: Tensor  # [E, 2] float32, pixel (x, y) of the marker in the first picture


class ReachReflector:
    def read(self, texts) -> Tensor:  # [M] int64, once per run: the colour channel that each instruction names
        return torch.tensor([0 if "red" in text else 2 for text in texts])

    def begin(self, seen: worldenv.Observation, read: Tensor) -> Goal:
        frames, channel = seen.frames[:, 0].float(), read[seen.text]
        row = torch.arange(len(frames))
        return Goal(centre(frames[row, :, :, channel] - frames[row, :, :, 2 - channel] > 100))

    def judge(self, frames: Tensor, state: Goal) -> tuple[Tensor, Tensor]:  # [B, K, V, H, W, 3]
        green = frames[:, :, 0, ..., 1] > 200
        pen = centre(green.flatten(0, 1)).unflatten(0, green.shape[:2])
        reward = torch.exp(-(pen - state.place[:, None]).norm(dim=-1) / 12)
        return reward, reward > 0.79


def centre(shown: Tensor) -> Tensor:  # [N, H, W] bool -> [N, 2] float32, mean pixel (x, y) of what is shown
    weight = shown.float() + 1e-6
    place = torch.arange(shown.shape[1]).float()
    x, y = (weight.sum(1) * place).sum(1), (weight.sum(2) * place).sum(1)
    return torch.stack([x, y], dim=1) / weight.sum((1, 2))[:, None]


def reflector(models, suite) -> ReachReflector:
    return ReachReflector()
