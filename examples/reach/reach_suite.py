"""A suite in one file: a green pen moves over a table to the red or to the blue marker, seen from above."""

from dataclasses import dataclass

import numpy as np
import torch

import worldenv

SIZE, STEP_M, NEAR_M = 32, 0.03, 0.04
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
SPLITS = ("train", "test", "validation")
CAMERA = np.array([[80, 0, 0, 16], [0, 80, 0, 16], [0, 0, 0, 1]], dtype=np.float32)  # 80 pixels per metre
ROBOT = worldenv.Robot(proprio=("x m", "y m"), action=("dx", "dy"), low=(-0.18, -0.18), high=(0.18, 0.18))


@dataclass(frozen=True)
class Reach:
    """Move the pen to the marker of one colour."""

    name: str

    @property
    def instructions(self) -> tuple[str, ...]:
        return f"move the pen to the {self.name} marker", f"touch {self.name}"


def paint(frames: np.ndarray, place: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw a square of 5 x 5 pixels into each picture [E, H, W, 3], where the camera sees `place` [E, 2] (m)."""
    x, y = ((CAMERA[i, i] * place[:, i] + CAMERA[i, 3]).round() for i in (0, 1))
    away = np.arange(SIZE)
    inside_x, inside_y = np.abs(away - x[:, None]) < 3, np.abs(away - y[:, None]) < 3
    frames[inside_y[:, :, None] & inside_x[:, None, :]] = color


class ReachSuite:
    """E episodes at a time. The task is done where the pen is within 4 cm of its marker."""

    name, horizon, views, robot = "reach", 12, ("above",), ROBOT
    tasks = (Reach("red"), Reach("blue"))

    def reset(self, tasks, starts, split) -> worldenv.Starts:
        seeds = [[SPLITS.index(split), start % 2**63] for start in starts]  # the splits share no start state
        draws = np.stack([np.random.default_rng(seed).uniform(-1, 1, 6) for seed in seeds])
        self.pen = (0.05 * draws[:, :2]).astype(np.float32)
        markers = {"red": draws[:, 2:4] * 0.02 - (0.12, 0.05), "blue": draws[:, 4:6] * 0.02 + (0.12, 0.05)}
        self.goal = np.stack([markers[task.name][i] for i, task in enumerate(tasks)])
        self.table = np.full((len(tasks), SIZE, SIZE, 3), 60, dtype=np.uint8)
        for name, place in markers.items():
            paint(self.table, place, COLORS[name])
        texts, self.text = worldenv.table_of([task.instructions[0] for task in tasks])
        return worldenv.Starts(self._observe(), texts)

    def step(self, action: np.ndarray) -> tuple[worldenv.Observation, np.ndarray]:
        self.pen = (self.pen + STEP_M * action).clip(ROBOT.low, ROBOT.high).astype(np.float32)
        return self._observe(), np.linalg.norm(self.pen - self.goal, axis=1) < NEAR_M

    def _observe(self) -> worldenv.Observation:
        frames = self.table.copy()
        paint(frames, self.pen, (0, 255, 0))
        camera = torch.from_numpy(CAMERA).expand(len(frames), 1, 3, 4)
        return worldenv.Observation(torch.from_numpy(frames)[:, None], torch.from_numpy(self.pen), camera, self.text)


def suite() -> ReachSuite:
    return ReachSuite()
