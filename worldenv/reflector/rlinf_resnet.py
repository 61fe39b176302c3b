"""The reward model that RLinf publishes beside its world models: a residual network that looks at one frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.data.formats.rlinf import RlinfConfig
from worldenv.data.orientation import STEPS
from worldenv.errors import UserError
from worldenv.interfaces.observation import Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, picture_flops, size_of
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import (
    AGAIN,
    Shape,
    check_finite,
    check_shapes,
    folder_of,
    put,
    read_pickle,
    settings_in,
)

FILE, WITHIN = "resnet_rm.pth", "model_state_dict"
BLOCKS = 4  # levels, of two residual blocks each
INT64 = 8  # bytes


class Residual(nn.Module):
    """Two convolutions beside a straight way, which is a convolution where width or size change."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width_in, width, 1, stride) if stride > 1 else None
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        straight = x if self.conv3 is None else self.conv3(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + straight)


class RewardNetwork(nn.Sequential):
    """Pictures [B, 3, H, W] in [-1, 1] to the probability [B, 1] that the task is done."""

    def __init__(self, widths: Sequence[int]):
        stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, stride=2, padding=3),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        before = [widths[0], *widths[:-1]]
        levels = [
            nn.Sequential(Residual(a, b, 1 + (level > 0)), Residual(b, b, 1))
            for level, (a, b) in enumerate(zip(before, widths, strict=True))
        ]
        super().__init__(
            stem, *levels, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(widths[-1], 1), nn.Sigmoid()
        )


@dataclass
class Judged(Slots):
    """What is kept of an episode: only that there is one, for the network looks at single frames."""

    text: Tensor  # [E] int64


class RlinfReflector(nn.Module):
    """The network's probability is the reward; above `threshold` it stops the episode.

    The authors round the probability, so that their reward is 0 or 1 and changes at 0.5. A policy cannot be told which
    of its failures were nearer by that, so here it stays as it is. The instruction is not read.
    """

    def __init__(self, network: RewardNetwork, config: RlinfConfig):
        super().__init__()
        self.net, self.config = network, config

    def read(self, texts: Sequence[str]) -> None:
        """Nothing: the network knows one suite's tasks, and does not tell them apart."""

    def begin(self, seen: Observation, read: None) -> Judged:
        return Judged(seen.text.clone())

    @torch.no_grad()
    def judge(self, frames: Tensor, state: Judged) -> tuple[Tensor, Tensor]:
        """Reward and stop [B, K] after each frame [B, K, V, H, W, 3], of the first view."""
        reward = self._reward(frames[:, :, 0].flatten(0, 1)).unflatten(0, frames.shape[:2])
        return reward, reward > self.config.threshold

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The whole network, of frames as they are."""

        def frames(rows: int) -> dict[str, Tensor]:
            return {"frames": torch.randint(256, (rows, *size, 3), dtype=torch.uint8)}

        return {"reward": Piece(self, self._reward, frames, ("reward",))}

    def _reward(self, frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N]
        rows, columns = STEPS[self.config.orientation]
        turned = [axis for axis, step in ((-3, rows), (-2, columns)) if step < 0]
        return self.net(frames.flip(turned).movedim(-1, 1).float() / 127.5 - 1)[:, 0]


def load_rlinf_reflector(folder: Path | str, suite: Suite) -> RlinfReflector:
    """The reward model in a folder of RLinf.

    Raises UserError naming the file for one that is missing, of another kind or damaged.
    """
    path, config, network, tensors = inspect_rlinf_reflector(folder)
    for key, tensor in tensors.items():
        check_finite(path, key, tensor)
        put(network, key.removeprefix("net."), tensor.to(copy=True))
    return RlinfReflector(network, config).requires_grad_(False).eval()


def rlinf_reflector_cost(folder: Path | str, size: int, chunk: int) -> Cost:
    """Of a policy's chunk of `chunk` frames of `size` x `size`, from shapes alone. Raises as the function above."""
    _, _, network, tensors = inspect_rlinf_reflector(folder)
    stem, *levels = list(network)[: 1 + BLOCKS]
    side = -(-size // 2)
    flops = picture_flops(stem, network[-2], places=side**2)
    for level in levels:
        side = -(-side // 2)
        flops += picture_flops(level, places=side**2)
    number = next(iter(tensors.values())).element_size()
    return Cost(*size_of(network, number), slot_bytes=INT64, chunk_flops=chunk * flops)


def inspect_rlinf_reflector(folder: Path | str) -> tuple[Path, RlinfConfig, RewardNetwork, dict[str, Tensor]]:
    """The file, its settings, an outline of the network, and the tensors that fit it, mapped into memory."""
    folder = folder_of(folder)
    config, path = settings_in(folder, RlinfConfig), folder / FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {FILE}, its reward model; take another reflector, or {AGAIN}")
    tensors = read_pickle(path, WITHIN)
    if any(key.startswith("task_embedding.") for key in tensors):
        raise UserError(f"{path} is a reward model that knows LIBERO's tasks by number; it is not read here")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    with torch.device("meta"):
        network = RewardNetwork(_widths(path, shapes))
    wanted = {f"net.{key}": tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    check_shapes(path, shapes, wanted, AGAIN)
    return path, config, network, tensors


def _widths(path: Path, shapes: Mapping[str, Shape]) -> list[int]:
    keys = [f"net.{level}.0.conv1.weight" for level in range(1, 1 + BLOCKS)]
    if missing := [key for key in keys if len(shapes.get(key, ())) != 4]:
        raise CheckpointError(f"{path} lacks {missing[0]}, so it is no reward model of RLinf; {AGAIN}")
    return [shapes[key][0] for key in keys]
