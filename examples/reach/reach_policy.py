"""A policy in one file: a normal distribution over chunks of three actions, from one hidden layer."""

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import worldenv


@dataclass
class Moment(worldenv.Slots):
    """What `log_prob` needs of B moments."""

    pixels: Tensor  # [B, 192] float32, the picture in 8 x 8 cells
    proprio: Tensor  # [B, P] float32
    text: Tensor  # [B, 2] float32


class ReachPolicy(nn.Module):
    chunk, views = 3, ("above",)

    def __init__(self, robot: worldenv.Robot):
        super().__init__()
        inputs, outputs = 8 * 8 * 3 + robot.proprio_size + 2, self.chunk * robot.action_size
        self.network = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))
        nn.init.zeros_(self.network[2].weight)
        self.log_scale = nn.Parameter(torch.full((robot.action_size,), log(0.4)))

    def read(self, texts) -> Tensor:  # [M, 2], once per run: what acting needs of each instruction
        return F.one_hot(torch.tensor([int("red" in text) for text in texts]), 2).float()

    def act(self, seen, read, key, explore) -> worldenv.Decision:
        picture = seen.frames[:, 0].permute(0, 3, 1, 2).float() / 255
        moment = Moment(F.adaptive_avg_pool2d(picture, 8).flatten(1), seen.proprio, read[seen.text])
        with torch.no_grad():
            action = self._mean(moment)
            if explore:
                noise = worldenv.philox(*key, worldenv.Use.ACTION, tuple(action.shape[1:]), normal=True)
                action = action + self.log_scale.exp() * noise
            return worldenv.Decision(action, self.log_prob(moment, action), moment)

    def log_prob(self, record: Moment, action: Tensor) -> Tensor:  # [B, K, A] -> [B], with a gradient
        z = (action - self._mean(record)) / self.log_scale.exp()
        return -(0.5 * z.square() + self.log_scale + 0.5 * log(2 * pi)).sum((1, 2))

    def trainable(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def _mean(self, moment: Moment) -> Tensor:  # [B, K, A]
        inputs = torch.cat([moment.pixels, moment.proprio, moment.text], dim=1)
        return self.network(inputs).unflatten(1, (self.chunk, -1))


def policy(models, suite) -> ReachPolicy:
    torch.manual_seed(0)
    return ReachPolicy(suite.robot)
