"""The resident tensors of imagined episodes, each once, with shape, dtype and who writes it."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Starts:
    """Where imagined episodes begin: real first frames, no simulator of the world needed."""

    frame: Tensor  # [N, H, W, 3] uint8
    proprio: Tensor  # [N, 7] float32
    tokens: Tensor  # [N, L] int64

    def __len__(self) -> int:
        return len(self.frame)

    def pick(self, index: Tensor) -> "Starts":
        return Starts(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass
class Rollouts:
    """What an iteration leaves behind: E = N * G episodes of at most T chunks, written by the engine."""

    frame: Tensor  # [E, T, H, W, 3] uint8, what the policy saw before each chunk
    proprio: Tensor  # [E, T, 7] float32, likewise
    action: Tensor  # [E, T, K, 7] float32, unclipped Laplace draws
    log_prob: Tensor  # [E, T] float32, under the policy that acted
    reward: Tensor  # [E, T, K] float32 in [0, 1], the reflector's judgement after each frame
    tokens: Tensor  # [E, L] int64
    chunks: Tensor  # [E] int64, chunks acted, >= 1
    stop: Tensor  # [E] int64, steps until the reflector stopped it; T * K if it never did
    stopped: Tensor  # [E] bool
    broken: Tensor  # [E] bool: something became non-finite; the episode carries no weight
    video: Tensor | None = None  # [E, T * K + 1, H, W, 3] uint8, only where it was asked for

    @classmethod
    def empty(cls, starts: Starts, horizon: int, chunk: int, video: bool) -> "Rollouts":
        e, height, width = len(starts), *starts.frame.shape[1:3]
        return cls(
            frame=torch.zeros(e, horizon, height, width, 3, dtype=torch.uint8),
            proprio=torch.zeros(e, horizon, 7),
            action=torch.zeros(e, horizon, chunk, 7),
            log_prob=torch.zeros(e, horizon),
            reward=torch.zeros(e, horizon, chunk),
            tokens=starts.tokens,
            chunks=torch.zeros(e, dtype=torch.long),
            stop=torch.full((e,), horizon * chunk),
            stopped=torch.zeros(e, dtype=torch.bool),
            broken=torch.zeros(e, dtype=torch.bool),
            video=torch.zeros(e, horizon * chunk + 1, height, width, 3, dtype=torch.uint8) if video else None,
        )

    def final_reward(self) -> Tensor:  # [E] float32
        """One scalar per episode: R at its stop, or at its last step (METHOD.md, "Reward of a rollout")."""
        return self.reward.flatten(1).gather(1, self.stop[:, None] - 1)[:, 0]


def bytes_per_episode(image_size: int, horizon: int, chunk: int) -> int:
    """Resident bytes of one episode without video: the records plus three memory frames."""
    frame = 3 * image_size**2
    record = horizon * (frame + 4 * (7 + 7 * chunk + 1 + chunk))
    return record + 3 * frame
