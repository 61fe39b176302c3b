"""The resident tensors of imagined episodes, each once, with shape, dtype and who writes it."""

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from worldenv.interfaces.slots import Slots, words
from worldenv.reflector.small import Pooled


@dataclass
class Starts:
    """Where imagined episodes begin: real first frames, no simulator of the world needed."""

    frame: Tensor  # [N, H, W, 3] uint8
    proprio: Tensor  # [N, 7] float32
    tokens: Tensor  # [N, L] int64

    def __len__(self) -> int:
        return len(self.frame)

    def pick(self, index: Tensor) -> "Starts":
        return Starts(*(getattr(self, field.name).index_select(0, index) for field in fields(self)))

    def to(self, device: torch.device | str) -> "Starts":
        return Starts(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass
class Pass(Slots):
    """The simulator's present pass of K frames, where episodes act in chunks that end within one: how it began."""

    frame: Tensor  # [E, H, W, 3] uint8, the last of the pass before
    poses: Tensor  # [E, K, 7] float32, the gripper's from then on, as far as it has come


@dataclass
class Episodes(Slots):
    """The episodes that are resident, a slot each; `memory` and `pooled` are written by the two models."""

    row: Tensor  # [E] int64, where its records are in the rollouts
    id: Tensor  # [E] int64, what its random numbers depend on
    chunk: Tensor  # [E] int64, chunks acted
    frame: Tensor  # [E, H, W, 3] uint8, the present one
    proprio: Tensor  # [E, 7] float32, likewise
    instruction: Tensor  # [E, ...], as the policy reads it
    memory: Slots
    pooled: Pooled
    begun: Pass | None  # None where every chunk is made of whole passes

    def move_on(self, frame: Tensor, proprio: Tensor) -> None:
        """One chunk further: what the episodes show now, [E, H, W, 3] uint8 and [E, 7] float32."""
        self.frame.copy_(frame)
        self.proprio.copy_(proprio)
        self.chunk.add_(1)


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
    feature: Tensor | None = None  # [E, T, D] float32, what the policy made of `frame`; None if it has no `see`

    @classmethod
    def empty(
        cls, starts: Starts, horizon: int, chunk: int, video: bool, features: int = 0, siblings: int = 1
    ) -> "Rollouts":
        e, height, width = len(starts) * siblings, *starts.frame.shape[1:3]
        zeros = partial(torch.zeros, device=starts.frame.device)
        return cls(
            frame=zeros(e, horizon, height, width, 3, dtype=torch.uint8),
            proprio=zeros(e, horizon, 7),
            action=zeros(e, horizon, chunk, 7),
            log_prob=zeros(e, horizon),
            reward=zeros(e, horizon, chunk),
            tokens=starts.tokens.repeat_interleave(siblings, 0),
            chunks=zeros(e, dtype=torch.long),
            stop=torch.full((e,), horizon * chunk, device=starts.frame.device),
            stopped=zeros(e, dtype=torch.bool),
            broken=zeros(e, dtype=torch.bool),
            video=zeros(e, horizon * chunk + 1, height, width, 3, dtype=torch.uint8) if video else None,
            feature=zeros(e, horizon, features) if features else None,
        )

    def record(
        self,
        live: Episodes,  # B of them, as they were before this chunk
        action: Tensor,  # [B, K, 7] float32
        log_prob: Tensor,  # [B] float32
        feature: Tensor | None,  # [B, D] float32
        frames: Tensor,  # [B, K, H, W, 3] uint8
        reward: Tensor,  # [B, K] float32
        over: Tensor,  # [B, K] bool, where the reflector would stop
        finite: Tensor,  # [B] bool
    ) -> None:
        """Note one chunk of some episodes; the first stop counts."""
        row, k = live.row, action.shape[1]
        place = (row, live.chunk)
        words(self.frame, 2)[place] = words(live.frame)
        self.proprio[place], self.action[place] = live.proprio, action
        self.log_prob[place], self.reward[place] = log_prob, reward
        if feature is not None:
            self.feature[place] = feature
        if self.video is not None:
            steps = live.chunk[:, None] * k + 1 + torch.arange(k, device=row.device)
            self.video[row[:, None], steps] = frames
        newly = over.any(1) & ~self.stopped[row]
        self.stop[row] = torch.where(newly, live.chunk * k + 1 + over.int().argmax(1), self.stop[row])
        self.stopped[row] |= newly
        self.broken[row] = ~finite
        self.chunks[row] = live.chunk + 1

    def forget(self, rows: Tensor) -> None:
        """Make some episodes anew, as if they had never begun."""
        for field in fields(self):
            if field.name != "tokens" and (tensor := getattr(self, field.name)) is not None:
                tensor[rows] = 0
        self.stop[rows] = self.reward[0].numel()

    def to(self, device: torch.device | str) -> "Rollouts":
        values = (getattr(self, field.name) for field in fields(self))
        return Rollouts(*(None if value is None else value.to(device) for value in values))

    def bytes_each(self) -> int:
        """Bytes of the records of one episode."""
        tensors = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor[:1].nbytes for tensor in tensors if tensor is not None)

    def final_reward(self) -> Tensor:  # [E] float32
        """One scalar per episode: R at its stop, or at its last step (World-Env, arXiv 2509.24948, reward)."""
        return self.reward.flatten(1).gather(1, self.stop[:, None] - 1)[:, 0]
