"""True episodes, replayed in imagination along their own actions, and what the reflector says of what it then sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldenv.data.trajectory import Trajectory
from worldenv.evaluation.truth import judge_frames, starts_of
from worldenv.rollout.engine import Engine
from worldenv.rollout.replay import replay


@dataclass(frozen=True)
class Replayed:
    """N true episodes as they are imagined, in whole passes of the world model."""

    trajectories: Sequence[Trajectory]  # N, of one length
    frames: Tensor  # [N, T + 1, V, H, W, 3] uint8, on the CPU, the true start frame first
    reward: np.ndarray  # [N, T] float32, of the imagined frames
    stop: np.ndarray  # [N, T] bool

    @property
    def success(self) -> np.ndarray:  # [N, T] bool
        """What is true of each frame, whatever was imagined."""
        return np.stack([t.success for t in self.trajectories])[:, : self.stop.shape[1]]


def replay_episodes(engine: Engine, trajectories: Sequence[Trajectory], seed: int, first_episode: int = 0) -> Replayed:
    """Open-loop replay: the actions of true episodes are imagined; no true frame is read after the first."""
    actions = torch.from_numpy(np.stack([t.actions for t in trajectories]))
    starts, device = starts_of(trajectories), engine.world.device
    frames = replay(engine.world, starts.to(device), actions.to(device), seed, first_episode).cpu()
    reward, stop = judge_frames(engine.reflector, starts, frames)
    return Replayed(trajectories, frames, reward.numpy(), stop.numpy())
