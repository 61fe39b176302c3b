"""A second policy, world model and reflector, for the second suite."""

from dataclasses import dataclass
from math import log, pi

import numpy as np
import torch
from second_suite import HEIGHT, ROBOT, STEP_M, WIDTH, draw_pen
from torch import Tensor, nn
from torch.nn import functional as F

import worldenv


@dataclass
class Moment(worldenv.Slots):
    """All that the policy looks at: its trunk is trained, so pictures are recorded."""

    frames: Tensor  # [B, V, H, W, 3] uint8
    proprio: Tensor  # [B, P]
    text: Tensor  # [B, C]


class LoRA(nn.Module):
    """A frozen linear layer and a trainable low-rank one beside it."""

    def __init__(self, inputs: int, outputs: int, rank: int = 4):
        super().__init__()
        self.frozen = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))


class GaussianPolicy(nn.Module):
    """A normal distribution over chunks of three actions, from a trunk with low-rank adapters."""

    chunk, views = 3, ("above", "near")

    def __init__(self):
        super().__init__()
        self.trunk = LoRA(2 * 3 * 24 + ROBOT.proprio_size + 2, 64)
        self.mean = nn.Linear(64, self.chunk * ROBOT.action_size)
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        self.log_scale = nn.Parameter(torch.full((ROBOT.action_size,), log(0.4)))

    def read(self, texts) -> Tensor:  # [M, 2], which marker: the last number of the text
        numbers = [int([word for word in text.split() if word.isdigit()][-1]) for text in texts]
        return F.one_hot(torch.tensor(numbers) - 1, 2).float()

    def _mean(self, moment: Moment) -> Tensor:  # [B, K, A]
        pictures = moment.frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        cells = F.adaptive_avg_pool2d(pictures, (4, 6)).reshape(len(moment.proprio), -1)
        x = torch.cat([cells, moment.proprio, moment.text], dim=1)
        return self.mean(torch.tanh(self.trunk(x))).view(-1, self.chunk, ROBOT.action_size)

    def act(self, seen, read, key, explore) -> worldenv.Decision:
        moment = Moment(seen.frames, seen.proprio, read[seen.text])
        with torch.no_grad():
            action = self._mean(moment)
            if explore:
                noise = worldenv.philox(*key, worldenv.Use.ACTION, tuple(action.shape[1:]), normal=True)
                action = action + self.log_scale.exp() * noise
            return worldenv.Decision(action, self.log_prob(moment, action), moment)

    def log_prob(self, record, action) -> Tensor:
        z = (action - self._mean(record)) / self.log_scale.exp()
        return -(0.5 * z.square() + self.log_scale + 0.5 * log(2 * pi)).sum((1, 2))

    def trainable(self) -> list[nn.Parameter]:
        return [self.trunk.down.weight, self.trunk.up.weight, self.mean.weight, self.mean.bias, self.log_scale]


@dataclass
class Table(worldenv.Slots):
    """The pictures without the pen."""

    frames: Tensor  # [E, V, H, W, 3] uint8


class ActionWorld:
    """A world model without kinematics: a linear layer, fitted to episodes, says how an action changes the state."""

    chunk, views, size, robot = 3, ("above", "near"), (HEIGHT, WIDTH), ROBOT

    def __init__(self, effect: Tensor):  # [6, 9]
        self.effect = effect

    @property
    def device(self) -> torch.device:
        return self.effect.device

    def begin(self, seen, chunk) -> Table:
        green = (seen.frames == seen.frames.new_tensor([0, 255, 0])).all(-1, keepdim=True)
        return Table(torch.where(green, 60, seen.frames))

    def imagine(self, memory, seen, action, key) -> worldenv.Imagined:
        low, high = (torch.tensor(bound) for bound in (ROBOT.low, ROBOT.high))
        state, frames, proprio = seen.proprio, [], []
        for one in action.clamp(-1, 1).unbind(1):
            state = (state + one @ self.effect).clamp(low, high)
            drawn = draw_pen(memory.frames.numpy(), seen.camera.numpy(), state[:, :3].numpy())
            frames.append(torch.from_numpy(drawn))
            proprio.append(state)
        finite = torch.stack(proprio).isfinite().all(0).all(1)
        return worldenv.Imagined(torch.stack(frames, 1), torch.stack(proprio, 1), finite)


@dataclass
class Goal(worldenv.Slots):
    """Which channel of the picture shows the marker that the text names."""

    channel: Tensor  # [E] int64
    place: Tensor  # [E, 2] px, of the marker in the first picture


class PenReflector:
    """Reads the text as a string, finds marker and pen in the first view, and judges by their distance."""

    def read(self, texts) -> Tensor:
        return torch.tensor([0 if "marker number 1 " in text else 2 for text in texts])

    def begin(self, seen, read) -> Goal:
        channel = read[seen.text]
        other = torch.tensor([0, 2])[(channel == 0).long()]
        row = torch.arange(len(channel))
        frames = seen.frames[:, 0].int()
        shown = frames[row, ..., channel] - frames[row, ..., other] > 100
        return Goal(channel, _centre(shown))

    def judge(self, frames, state) -> tuple[Tensor, Tensor]:
        b, k = frames.shape[:2]
        pen = _centre((frames[:, :, 0, ..., 1] > 200).flatten(0, 1)).view(b, k, 2)
        reward = torch.exp(-(pen - state.place[:, None]).norm(dim=-1) / 20)
        return reward, reward > 0.78


def _centre(shown: Tensor) -> Tensor:  # [N, H, W] bool -> [N, 2] px
    weight = shown.float() + 1e-6
    rows, columns = torch.arange(shown.shape[1]).float(), torch.arange(shown.shape[2]).float()
    total = weight.sum((1, 2))
    return torch.stack([(weight.sum(1) * columns).sum(1), (weight.sum(2) * rows).sum(1)], dim=1) / total[:, None]


def policy(models, suite) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy().eval()


def world(models, suite) -> ActionWorld:
    """Fitted by least squares to what random actions did in the true suite."""
    random = np.random.default_rng(0)
    before = suite.reset([suite.tasks[0]] * 200, range(200), "train").seen.proprio
    action = random.uniform(-1, 1, (200, 6)).astype(np.float32)
    after, _ = suite.step(action)
    effect = torch.linalg.lstsq(torch.from_numpy(action), after.proprio - before).solution
    assert (effect[:2, :2] - STEP_M * torch.eye(2)).abs().max() < 1e-4
    return ActionWorld(effect)


def reflector(models, suite) -> PenReflector:
    return PenReflector()
