"""Many trajectories, padded to one length, with their frames in memory or on disk: what training draws batches from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldenv.data.formats.demos import Demo
from worldenv.data.formats.layout import Steps
from worldenv.data.formats.opened import OpenFiles
from worldenv.data.frames import MemoryFrames, StoredFrames
from worldenv.data.orientation import Orientation
from worldenv.data.paths import as_path
from worldenv.data.trajectories import Trajectory, read_episodes
from worldenv.data.trajectory import check_alike
from worldenv.errors import UserError

TEXTS = ("instructions", "tasks")


@dataclass(frozen=True, eq=False)
class Clips:
    """N trajectories of at most T steps; entries past `length` repeat the last one and carry no information."""

    stored: MemoryFrames | StoredFrames  # read them with `frames_at`
    proprio: Tensor  # [N, T + 1, P] float32
    actions: Tensor  # [N, T, A] float32, zeros past length
    success: Tensor  # [N, T + 1] bool, of the state that the frame shows
    length: Tensor  # [N] int64, steps
    instructions: tuple[str, ...]  # [N]
    tasks: tuple[str, ...]  # [N]
    views: tuple[str, ...]  # [V]
    camera: Tensor | None = None  # [N, V, 3, 4] float32, as in Trajectory; [N, T + 1, V, 3, 4] if one moves

    def __len__(self) -> int:
        return len(self.length)

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> "Clips":
        """Frames in memory. Raises ValueError if there are no trajectories or they do not fit together."""
        names = [f"trajectory {i}" for i in range(len(trajectories))]
        check_alike(names, [(t.proprio, t.actions, t.camera, t.views, t.frames.shape[2:4]) for t in trajectories])
        begin = np.cumsum([0, *(len(t.frames) for t in trajectories)])
        rows = np.empty((begin[-1], *trajectories[0].frames.shape[1:]), np.uint8)
        for first, t in zip(begin, trajectories, strict=False):
            rows[first : first + len(t.frames)] = t.frames
        stored = MemoryFrames(torch.from_numpy(rows), torch.from_numpy(begin[:-1]))
        steps = [{f: getattr(t, f) for f in ("proprio", "actions", "success", "camera")} for t in trajectories]
        texts = tuple(t.instruction for t in trajectories), tuple(t.task for t in trajectories)
        return cls(stored, **_stacked(steps), **dict(zip(TEXTS, texts, strict=True)), views=trajectories[0].views)

    @classmethod
    def open(
        cls,
        paths: str | Path | Iterable[str | Path],
        instruction: str | None = None,
        orientation: Orientation | None = None,
    ) -> "Clips":
        """Frames on disk: of one data set (folder or file) or of several, one after the other.

        Raises TrajectoryFormatError as TrajectoryReader does, UserError if the trajectories do not fit together.
        """
        paths, files = [paths] if isinstance(paths, str | bytes | Path) else list(paths), OpenFiles()
        found: list[tuple[Demo, Steps]] = [
            pair for path in paths for pair in read_episodes(as_path(path), files, instruction, orientation)
        ]
        demos, steps = [demo for demo, _ in found], [part for _, part in found]
        alike = [(s["proprio"], s["actions"], s["camera"], d.views, d.size) for d, s in found]
        check_alike([f"{demo.path}: /data/{demo.name}" for demo in demos], alike)
        texts = {name: tuple(d.labels[name.removesuffix("s")] for d in demos) for name in TEXTS}
        return cls(StoredFrames(demos, files), **_stacked(steps), **texts, views=demos[0].views)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """V, H, W."""
        return self.stored.shape

    def begun(self) -> list[tuple[str, int, str]]:
        """Task, start state and split of each episode. Only for clips whose frames are on disk."""
        return [(demo.labels["task"], int(demo.labels["start"]), demo.labels["split"]) for demo in self.stored.demos]

    def frames_at(
        self,
        episode: Tensor,  # [B] int64
        step: Tensor,  # [B, M] int64; past the end the last frame is repeated
    ) -> Tensor:  # [B, M, V, H, W, 3] uint8
        """Frames of some steps of some episodes. Reads from disk what is not in memory."""
        return self.stored.at(episode, torch.minimum(step, self.length[episode, None]))

    def cameras_at(
        self,
        episode: Tensor,  # [B] int64
        step: Tensor,  # [B, M] int64; past the end the last one is repeated
    ) -> Tensor:  # [B, M, V, 3, 4] float32
        """The cameras of some frames of some episodes, which must have cameras. Of those that stand still, a view."""
        if self.camera.ndim == 4:
            return self.camera[episode][:, None].expand(-1, step.shape[1], -1, -1, -1)
        return self.camera[episode[:, None], step]

    def still_camera(self) -> Tensor:  # [N, V, 3, 4] float32
        """The cameras of each episode. Raises UserError if there are none, or one of the first view moves."""
        if self.camera is None:
            raise UserError("the trajectories have no camera matrix")
        if self.camera.ndim == 4:
            return self.camera
        if (self.camera[:, :, 0] != self.camera[:, :1, 0]).any():
            raise UserError(f"the camera of the view {self.views[0]} moves; it should stand still here")
        return self.camera[:, 0]

    def sample_frames(self, generator: torch.Generator, count: int) -> Tensor:  # [count, V, H, W, 3] uint8
        """Frames drawn with replacement, each of the data set's as likely as every other."""
        end = (self.length + 1).cumsum(0)
        drawn = torch.randint(int(end[-1]), (count,), generator=generator)
        episode = torch.searchsorted(end, drawn, right=True)
        step = drawn - (end - self.length - 1)[episode]
        return self.frames_at(episode, step[:, None])[:, 0]

    def pick(self, index: Tensor) -> "Clips":
        """The clips [M] int64 of that index."""
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in TEXTS}
        parts |= {name: part[index] for name, part in parts.items() if isinstance(part, Tensor)}
        texts = {name: tuple(getattr(self, name)[i] for i in index.tolist()) for name in TEXTS}
        return Clips(**parts | texts | {"stored": self.stored.pick(index)})

    def in_memory(self) -> "Clips":
        """The same clips with their frames in memory."""
        if isinstance(self.stored, MemoryFrames):
            return self
        begin = (self.length + 1).cumsum(0) - self.length - 1
        rows = torch.empty(int((self.length + 1).sum()), *self.frame_shape, 3, dtype=torch.uint8)
        for i, (first, length) in enumerate(zip(begin.tolist(), self.length.tolist(), strict=True)):
            rows[first : first + length + 1] = self.frames_at(torch.tensor([i]), torch.arange(length + 1)[None])[0]
        return replace(self, stored=MemoryFrames(rows, begin))

    def action_chunks(
        self,
        episode: Tensor,  # [B] int64
        step: Tensor,  # [B] int64, < length
        chunk: int,
    ) -> Tensor:  # [B, K, A]
        """The K actions that follow a frame; past the end the last one is repeated."""
        index = torch.minimum(step[:, None] + torch.arange(chunk), self.length[episode, None] - 1)
        return self.actions[episode[:, None], index]


def _stacked(parts: Sequence[Steps]) -> dict[str, Tensor | None]:
    """Pad to the longest and stack."""
    lengths = [len(part["actions"]) for part in parts]
    n, steps = len(parts), max(lengths)
    proprio = np.empty((n, steps + 1, parts[0]["proprio"].shape[1]), np.float32)
    actions = np.zeros((n, steps, parts[0]["actions"].shape[1]), np.float32)
    success = np.zeros((n, steps + 1), bool)
    for i, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        proprio[i, : length + 1], proprio[i, length + 1 :] = part["proprio"], part["proprio"][-1]
        actions[i, :length] = part["actions"]
        success[i, 1 : length + 1], success[i, length + 1 :] = part["success"], part["success"][-1]
    camera = _stacked_cameras([part["camera"] for part in parts], steps)
    stacked = {"proprio": proprio, "actions": actions, "success": success, "length": np.array(lengths)}
    return {name: torch.from_numpy(a) for name, a in stacked.items()} | {
        "camera": None if camera is None else torch.from_numpy(camera)
    }


def _stacked_cameras(cameras: Sequence[np.ndarray | None], steps: int) -> np.ndarray | None:
    """[N, V, 3, 4], or [N, steps + 1, V, 3, 4] if one moves; past the end the last one is repeated."""
    if cameras[0] is None or all(camera.ndim == 3 for camera in cameras):
        return None if cameras[0] is None else np.stack(cameras)
    every = np.arange(steps + 1)
    return np.stack(
        [c[np.minimum(every, len(c) - 1)] if c.ndim == 4 else c[None].repeat(steps + 1, 0) for c in cameras]
    )
