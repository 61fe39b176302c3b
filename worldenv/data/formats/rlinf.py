"""RLinf's folders of a world model: how their pictures lie, what their files do not say, and their start frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldenv.data.formats.npy_objects import read_objects
from worldenv.data.orientation import Orientation, upright
from worldenv.errors import UserError
from worldenv.fields import COUNT, LARGEST, SHARE, FieldError, Within, check_fields
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.interfaces.suite import Suite
from worldenv.records.released import folder_of, settings_in

GROUP = 4  # frames that the video autoencoder makes one latent of, but for the first


@dataclass(frozen=True)
class RlinfConfig:
    """How such a folder is used. It may lie there as worldenv.json, with the fields that differ.

    The defaults are those of the authors' evaluation on LIBERO.
    """

    size: int = 256  # pixels of a side
    chunk: int = 8  # frames of a pass, a multiple of 4
    steps: int = 5  # denoising steps of a pass
    shift: float = 5.0  # of the noise levels towards noise: sigma = shift s / (1 + (shift - 1) s)
    head: int = 128  # numbers of an attention head
    # What a pass knows of the past, beside the first frame. frames: the last four, decoded, rounded to 8 bits and
    # encoded anew, as the authors do. latents: the last latent as it came out, which saves both, but for what is shown.
    context: Literal["frames", "latents"] = "frames"
    # Which passes of a chunk are shown. last: that before the policy looks again; the frames before it repeat the
    # picture that the chunk began with.
    decode: Literal["all", "last"] = "all"
    orientation: Orientation = "turned"  # of their pictures; here they are upright
    threshold: float = 0.5  # the reward above which the reward model says that the task is done
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"

    def __post_init__(self) -> None:
        size, shift = Within(1, LARGEST), Within(0.0, LARGEST, open_low=True)
        check_fields(self, size=size, chunk=COUNT, steps=Within(1, 1000), shift=shift, head=size, threshold=SHARE)
        if self.chunk % GROUP:
            raise FieldError(f"chunk is {self.chunk}; it should be a multiple of the {GROUP} frames of a latent")

    def sigmas(self) -> list[float]:
        """Falling noise levels of the sampler, from 1 to 0."""
        even = [1 - step / self.steps for step in range(self.steps + 1)]
        return [self.shift * s / (1 + (self.shift - 1) * s) for s in even]


def rlinf_starts(folder: Path | str, suite: Suite, config: RlinfConfig | None = None) -> Starts:
    """The first frames of the trajectories in `dataset/`, with their instructions: where practice may begin.

    Their files have no camera, and poses whose meaning they do not say: proprioception is all zeros within the robot's
    bounds, so only a policy that does not read it can begin here. `*_kir.npy`, episodes that begin in the middle of a
    task with five frames of their own, are left out. Raises UserError naming the file for what cannot be read.
    """
    folder = folder_of(folder)
    config = settings_in(folder, RlinfConfig) if config is None else config
    files = sorted(path for path in (folder / "dataset").glob("traj*.npy") if not path.stem.endswith("_kir"))
    if not files:
        raise UserError(f"{folder / 'dataset'} has no traj*.npy, the start frames; download them, or use the suite's")
    frames, instructions = zip(*(_first(path, config) for path in files), strict=True)
    texts, text = table_of(instructions)
    pictures = torch.from_numpy(np.stack(frames)[:, None])
    robot = suite.robot
    pose = torch.zeros(robot.proprio_size).clamp(torch.tensor(robot.low).float(), torch.tensor(robot.high).float())
    return Starts(Observation(pictures, pose.repeat(len(files), 1), None, text), texts)


def _first(path: Path, config: RlinfConfig) -> tuple[np.ndarray, str]:
    """Picture, upright, and instruction of a trajectory's first frame."""
    objects = read_objects(path)
    first: Any = objects[0] if objects else None
    image = first.get("image") if isinstance(first, dict) else None
    wanted = (config.size, config.size, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != wanted:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else "no array"
        raise UserError(f"{path}: the first frame's image is {found}; it should be uint8 {list(wanted)}, as size says")
    said = first.get("instruction", first.get("task", ""))
    said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if not said.strip():
        raise UserError(f"{path}: the first frame has no instruction")
    return np.ascontiguousarray(upright(image, config.orientation)), said
