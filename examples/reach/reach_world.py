"""A world model in one file: one linear layer, fitted to random actions, says how an action moves the robot."""

from dataclasses import dataclass

import numpy as np
import torch
from reach_suite import SIZE, paint
from torch import Tensor, nn

import worldenv


@dataclass
class Table(worldenv.Slots):
    """What the world model remembers of E episodes: the picture without the pen."""

    frames: Tensor  # [E, H, W, 3] uint8


class ReachWorld(nn.Module):
    chunk, views, size = 3, ("above",), (SIZE, SIZE)

    def __init__(self, robot: worldenv.Robot):
        super().__init__()
        self.robot = robot
        self.effect = nn.Linear(robot.action_size, robot.proprio_size, bias=False)

    @property
    def device(self) -> torch.device:
        return self.effect.weight.device

    def begin(self, seen: worldenv.Observation, chunk: int) -> Table:
        green = (seen.frames[:, 0] == seen.frames.new_tensor([0, 255, 0])).all(-1, keepdim=True)
        return Table(torch.where(green, 60, seen.frames[:, 0]))

    def imagine(self, memory: Table, seen: worldenv.Observation, action: Tensor, key) -> worldenv.Imagined:
        low, high = (action.new_tensor(bound) for bound in (self.robot.low, self.robot.high))
        pose, frames, proprio = seen.proprio, [], []
        for one in action.clamp(-1, 1).unbind(1):
            pose = (pose + self.effect(one)).clamp(low, high)
            picture = memory.frames.numpy().copy()
            paint(picture, pose.numpy(), (0, 255, 0))
            frames.append(torch.from_numpy(picture)[:, None])
            proprio.append(pose)
        proprio = torch.stack(proprio, 1)
        return worldenv.Imagined(torch.stack(frames, 1), proprio, proprio.isfinite().all(2).all(1))


def world(models, suite) -> ReachWorld:
    """Fitted by least squares to 200 random actions in the true suite."""
    before = suite.reset([suite.tasks[0]] * 200, range(200), "train").seen.proprio.clone()
    action = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    after, _ = suite.step(action)
    made = ReachWorld(suite.robot)
    made.effect.weight.data = torch.linalg.lstsq(torch.from_numpy(action), after.proprio - before).solution.T
    return made
