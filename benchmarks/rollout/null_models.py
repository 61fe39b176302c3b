"""Models that compute nothing, so that the time of a rollout is the engine's own cost.

They hand out parts of tensors that were made once, with the shapes of the shipped models. Of every STOPS slots of a
part one is stopped after every chunk, so slots are recycled all the time; the others go on to the horizon.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from worldenv.reflector.small import Pooled
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Starts
from worldenv.worlds.composer.world import Memory

K, CONTEXT, WIDTH, STOPS = 4, 64, 256, 11


class NullPolicy:
    def __init__(self, episodes: int):
        self.config = SimpleNamespace(chunk=K)
        self.mu, self.beta = torch.zeros(episodes, K, 7), torch.full((episodes, K, 7), -2.0)
        self.instruction, self.feature = torch.zeros(1, CONTEXT), torch.zeros(episodes, WIDTH)
        self.features = WIDTH

    def see(self, frame: Tensor, instruction: Tensor) -> Tensor:
        return self.feature[: len(frame)]

    def heads(self, feature: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu[: len(feature)], self.beta[: len(feature)]

    def read(self, tokens: Tensor) -> Tensor:
        return self.instruction.expand(len(tokens), CONTEXT)


class NullWorld:
    chunk, device = K, torch.device("cpu")

    def __init__(self, episodes: int, size: int):
        self.size = size
        self.frames = torch.full((episodes, K, size, size, 3), 7, dtype=torch.uint8)
        self.drawn = torch.ones(episodes, dtype=torch.bool)

    def begin(self, frame: Tensor, proprio: Tensor) -> Memory:
        return Memory(frame, frame)

    def imagine(self, memory: Memory, frame: Tensor, *_) -> tuple[Tensor, Tensor]:
        return self.frames[: len(frame)], self.drawn[: len(frame)]


class NullReflector:
    def __init__(self, episodes: int):
        self.config = SimpleNamespace(threshold=0.5)
        self.reward = torch.full((episodes, K), 0.25)
        self.reward[::STOPS, 2] = 0.75
        self.features = [torch.zeros(episodes, n) for n in (CONTEXT, WIDTH, WIDTH, 1)]

    def read(self, tokens: Tensor) -> Tensor:
        return tokens

    def begin(self, frame: Tensor, tokens: Tensor) -> Pooled:
        return Pooled(*(feature[: len(frame)] for feature in self.features))

    def judge(self, frames: Tensor, pooled: Pooled) -> Tensor:
        return self.reward[: len(frames)]


def null_engine(capacity: int, size: int = 64, **config) -> Engine:
    models = NullPolicy(capacity), NullWorld(capacity, size), NullReflector(capacity)
    return Engine(*models, Kinematics(), EngineConfig(capacity=capacity, **config))


def null_starts(episodes: int, size: int = 64) -> Starts:
    """Frames of 1 and poses of 0; tokens of a real instruction's shape."""
    frame = torch.ones(episodes, size, size, 3, dtype=torch.uint8)
    return Starts(frame, torch.zeros(episodes, 7), torch.full((episodes, 12), 2))
