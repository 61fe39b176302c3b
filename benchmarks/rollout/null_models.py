"""Models that compute nothing, so that the time of a rollout is the engine's own cost.

They hand out parts of tensors that were made once, with the shapes of the shipped models. Of every STOPS slots of a
part one is stopped after every chunk, so slots are recycled all the time; the others go on to the horizon.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldenv.interfaces.observation import Key, Observation, Starts
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.world import Imagined
from worldenv.policy.laplace import SeenFeature
from worldenv.reflector.small import Pooled
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.worlds.composer.layer import POSITION, Layer
from worldenv.worlds.composer.world import Memory

K, CONTEXT, WIDTH, STOPS = 4, 64, 256, 11


class NullPolicy:
    chunk, views = K, ("agentview",)

    def __init__(self, episodes: int):
        self.action, self.log_probs = torch.full((episodes, K, 7), 0.5), torch.full((episodes,), -2.0)
        self.feature = torch.zeros(episodes, WIDTH)

    def read(self, texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(texts), CONTEXT)

    def act(self, seen: Observation, read: Tensor, key: Key, explore: bool) -> Decision:
        n = len(seen)
        return Decision(self.action[:n], self.log_probs[:n], SeenFeature(self.feature[:n], seen.proprio))

    def log_prob(self, record: SeenFeature, action: Tensor) -> Tensor:
        return self.log_probs[: len(action)]

    def trainable(self) -> list[nn.Parameter]:
        return []


class NullWorld:
    chunk, views, robot, device = K, ("agentview",), moved_gripper(Kinematics()), torch.device("cpu")

    def __init__(self, episodes: int, size: int):
        self.size = size, size
        self.frames = torch.full((episodes, K, 1, size, size, 3), 7, dtype=torch.uint8)
        self.proprio, self.finite = torch.zeros(episodes, K, 7), torch.ones(episodes, dtype=torch.bool)

    def begin(self, seen: Observation, chunk: int) -> Memory:
        frame = self.frames[: len(seen), 0, 0]
        tips = seen.proprio[:, POSITION]
        return Memory(frame, tips, Layer.begin(frame, tips), None)

    def imagine(self, memory: Memory, seen: Observation, action: Tensor, key: Key) -> Imagined:
        return Imagined(self.frames[: len(seen)], self.proprio[: len(seen)], self.finite[: len(seen)])


class NullReflector:
    def __init__(self, episodes: int):
        self.reward = torch.full((episodes, K), 0.25)
        self.reward[::STOPS, 2] = 0.75
        self.stop = self.reward > 0.5
        self.features = [torch.zeros(episodes, n) for n in (CONTEXT, WIDTH, WIDTH, 1)]

    def read(self, texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(texts), CONTEXT)

    def begin(self, seen: Observation, read: Tensor) -> Pooled:
        return Pooled(*(feature[: len(seen)] for feature in self.features))

    def judge(self, frames: Tensor, state: Pooled) -> tuple[Tensor, Tensor]:
        return self.reward[: len(frames)], self.stop[: len(frames)]


def null_engine(capacity: int, size: int = 64, horizon: int = 40, **config) -> Engine:
    models = NullPolicy(capacity), NullWorld(capacity, size), NullReflector(capacity)
    return Engine(*models, EngineConfig(horizon, capacity, **config))


def null_starts(episodes: int, size: int = 64) -> Starts:
    """Frames of 1 and poses of 0, all of one instruction."""
    frames = torch.ones(episodes, 1, size, size, 3, dtype=torch.uint8)
    camera, text = torch.zeros(episodes, 1, 3, 4), torch.zeros(episodes, dtype=torch.int64)
    return Starts(Observation(frames, torch.zeros(episodes, 7), camera, text), ("put the red block on the green pad",))
