"""A second suite: two views of 48 x 80 pixels, 9 numbers of proprioception, 6 of action, another camera per episode."""

from dataclasses import dataclass

import numpy as np
import torch

import worldenv

HEIGHT, WIDTH, STEP_M, NEAR_M = 48, 80, 0.03, 0.05
MARKERS = np.array([[-0.18, -0.08], [0.18, 0.08]])  # m, x and y; number 1 is red, number 2 is blue
COLORS = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)
ROBOT = worldenv.Robot(
    ("x m", "y m", "z m", "vx", "vy", "vz", "load 1", "load 2", "time"),
    ("dx", "dy", "dz", "spare 1", "spare 2", "spare 3"),
    (-0.3, -0.18, 0.0, -1.0, -1.0, -1.0, 0.0, 0.0, 0.0),
    (0.3, 0.18, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
)


@dataclass(frozen=True)
class Marker:
    """Move the pen to one of the two markers."""

    name: str
    number: int

    @property
    def instructions(self) -> tuple[str, ...]:
        return (
            f"please move the long green pen of robot 47 over the white table until it rests on marker number "
            f"{self.number} and stays there",
        )


def draw_pen(frames: np.ndarray, camera: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Pictures [E, V, H, W, 3] with a green square where cameras [E, V, 3, 4] see the pens [E, 3]."""
    out = frames.copy()
    pixel = camera[..., :3] @ xyz[:, None, :, None]
    column, row = ((pixel[..., i, 0] + camera[..., i, 3]).round().astype(int) for i in (0, 1))
    rows, columns = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    near = (np.abs(rows - row[..., None, None]) < 3) & (np.abs(columns - column[..., None, None]) < 3)
    out[near] = (0, 255, 0)
    return out


class PenSuite:
    """A pen over a table with two markers; the task is done where the pen is near its marker."""

    name, horizon, views, robot = "pens", 12, ("above", "near"), ROBOT
    tasks = (Marker("marker-1", 1), Marker("marker-2", 2))

    def reset(self, tasks, starts, split) -> worldenv.Starts:
        pairs = zip(tasks, starts, strict=True)
        seeds = [[split == "test", start % 2**63, task.number] for task, start in pairs]
        draws = np.stack([np.random.default_rng(seed).random(9) for seed in seeds])
        self.state = np.zeros((len(tasks), 9), dtype=np.float32)
        self.state[:, :2] = (draws[:, :2] - 0.5) * (0.2, 0.1)
        self.state[:, 2] = 0.05
        zoom = np.array([110.0, 140.0]) + 10 * draws[:, 2:4]  # pixels per metre
        self.camera = np.zeros((len(tasks), 2, 3, 4), dtype=np.float32)
        self.camera[..., 0, 0], self.camera[..., 1, 1], self.camera[..., 2, 3] = zoom, zoom, 1.0
        self.camera[..., 0, 3], self.camera[..., 1, 3] = WIDTH / 2 + 4 * draws[:, 4:6], HEIGHT / 2 + 2 * draws[:, 6:8]
        self.goal = MARKERS[[task.number - 1 for task in tasks]]
        self.table = self._table()
        texts, self.text = worldenv.table_of([task.instructions[0] for task in tasks])
        return worldenv.Starts(self._observe(), texts)

    def step(self, action) -> tuple[worldenv.Observation, np.ndarray]:
        self.state[:, 3:6] = action[:, :3]
        self.state[:, :3] += STEP_M * action[:, :3]
        self.state[:, 8] += 1 / self.horizon
        self.state = self.state.clip(ROBOT.low, ROBOT.high).astype(np.float32)
        return self._observe(), np.linalg.norm(self.state[:, :2] - self.goal, axis=1) < NEAR_M

    def _table(self) -> np.ndarray:
        frames = np.full((len(self.camera), 2, HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
        for marker, color in zip(MARKERS, COLORS, strict=True):
            one = np.broadcast_to(np.array([*marker, 0.0], dtype=np.float32), (len(frames), 3))
            green = (draw_pen(np.zeros_like(frames), self.camera, one)[..., 1:2] > 0).repeat(3, axis=-1)
            frames = np.where(green, color, frames)
        return frames

    def _observe(self) -> worldenv.Observation:
        frames = draw_pen(self.table, self.camera, self.state[:, :3])
        tensors = (torch.from_numpy(x) for x in (frames, self.state.copy(), self.camera))
        return worldenv.Observation(*tensors, self.text)


def suite() -> PenSuite:
    return PenSuite()
