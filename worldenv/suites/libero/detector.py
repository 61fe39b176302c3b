"""Where the things of LIBERO Object are in a picture, by a small network: true frames and imagined ones alike.

`benchmarks/libero_detector.py` trains the network and measures it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.interfaces.suite import Things
from worldenv.records.model_files import load_model
from worldenv.suites.libero.tasks import LiberoTask, thing_of
from worldenv.suites.parts import find_parts

KIND = "detector of libero_object"
KINDS = (
    "alphabet_soup",
    "bbq_sauce",
    "butter",
    "chocolate_pudding",
    "cream_cheese",
    "ketchup",
    "milk",
    "orange_juice",
    "salad_dressing",
    "tomato_sauce",
)
SIDE = 64  # pixels of the pictures that the network has learned to read
AT_ONCE = 256  # pictures of one pass: 100 MB of activations


@dataclass(frozen=True)
class DetectorConfig:
    """The sizes of a detector."""

    width: int = 12  # channels at the full resolution


class Detector(nn.Module):
    """Convolutions at 1, 1/2 and 1/4 of the resolution: what each pixel shows."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config, w = config, config.width
        self.fine = nn.Sequential(_layer(3, w), _layer(w, w))
        self.middle = nn.Sequential(nn.MaxPool2d(2), _layer(w, 2 * w), _layer(2 * w, 2 * w))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), _layer(2 * w, 3 * w), _layer(3 * w, 3 * w), _larger())
        self.to_middle = nn.Sequential(_layer(5 * w, 2 * w), _larger())
        self.to_fine = nn.Sequential(_layer(3 * w, w), nn.Conv2d(w, 1 + len(KINDS), 1))

    def forward(
        self,
        picture: Tensor,  # [M, 3, 64, 64], 0 to 1
    ) -> Tensor:  # [M, 1 + kinds, 64, 64] logits of what a pixel shows: nothing of these, or the thing of a kind
        fine = self.fine(picture - 0.5)
        middle = self.middle(fine)
        middle = self.to_middle(torch.cat([middle, self.coarse(middle)], dim=1))
        return self.to_fine(torch.cat([fine, middle], dim=1))


def _layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _larger() -> nn.Module:
    return nn.Upsample(scale_factor=2)


def weights() -> Path:
    """The weights that come with the package."""
    return Path(str(files("worldenv") / "assets" / "libero" / "detector.safetensors"))


@cache
def _shipped() -> Detector:
    return load_model(weights(), KIND, Detector, DetectorConfig)[0]


def find_things(
    frames: np.ndarray,  # [N, T, V, H, W, 3] uint8
    tasks: Sequence[LiberoTask],  # N
    detector: Detector | None = None,  # None: the one that comes with the package
) -> Things:
    """The things of LIBERO Object in the first view of every frame; C counts their ten kinds.

    Pictures of another size than 64 x 64 are resized for the network, and what it finds is scaled back. Raises
    UserError for frames of another kind, or not one task for each episode.
    """
    if frames.dtype != np.uint8 or frames.ndim != 6 or frames.shape[-1] != 3 or len(frames) != len(tasks):
        raise UserError(
            f"frames is {frames.dtype} {list(frames.shape)} for {len(tasks)} tasks; it should be uint8 [N, T, V, H, W, "
            "3] with one task for each of the N episodes"
        )
    n, t, _, height, width, _ = frames.shape
    shows = what_pixels_show(frames[:, :, 0].reshape(n * t, height, width, 3), detector or _shipped())
    area, centre = find_parts(shows, len(KINDS))
    scale = np.array([width / SIDE, height / SIDE], dtype=np.float32)
    area, centre = area * scale.prod(), centre * scale
    known = np.array([[kind in task.things for kind in KINDS] for task in tasks], dtype=bool).reshape(n, len(KINDS))
    aim = np.array([KINDS.index(thing_of(task.name)) for task in tasks], dtype=np.int64)
    return Things(area.reshape(n, t, *area.shape[1:]), centre.reshape(n, t, *centre.shape[1:]), known, aim)


@torch.no_grad()
def what_pixels_show(
    pictures: np.ndarray,  # [M, H, W, 3] uint8
    detector: Detector,
) -> np.ndarray:  # [M, 64, 64] uint8: index of the kind + 1; 0: nothing of these
    """The likeliest content of every pixel."""
    out = np.zeros((len(pictures), SIDE, SIDE), dtype=np.uint8)
    for first in range(0, len(pictures), AT_ONCE):
        some = torch.from_numpy(pictures[first : first + AT_ONCE]).permute(0, 3, 1, 2).float() / 255
        if some.shape[2:] != (SIDE, SIDE):
            some = F.interpolate(some, (SIDE, SIDE), mode="area")
        out[first : first + AT_ONCE] = detector(some).argmax(1).numpy()
    return out
