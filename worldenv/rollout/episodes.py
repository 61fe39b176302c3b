"""The tensors of imagined episodes, with shape and dtype: of those resident in slots, of one step, of all records."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Observation, Starts
from worldenv.interfaces.slots import Slots, words


@dataclass
class Episodes(Slots):
    """The resident episodes, one per slot. The world model writes `memory`, the reflector `judged`."""

    row: Tensor  # [E] int64, row of its start (in an environment) or of its records (in the engine)
    id: Tensor  # [E] int64, what its random numbers depend on
    chunk: Tensor  # [E] int64, chunks acted
    seen: Observation  # the present one
    memory: Slots  # of the world model
    judged: Slots  # of the reflector
    action: Tensor | None = None  # [E, K, A] float32, the caller's next chunk; None: a policy acts

    def move_on(self, frames: Tensor, proprio: Tensor, camera: Tensor | None = None) -> None:
        """Advance by a chunk; the new observation is [E, V, H, W, 3] uint8, [E, P] float32, and [E, V, 3, 4] if a
        camera has moved."""
        self.seen.frames.copy_(frames)
        self.seen.proprio.copy_(proprio)
        if camera is not None:
            self.seen.camera.copy_(camera)
        self.chunk.add_(1)


@dataclass
class Step(Slots):
    """One chunk of B episodes: the decision, what was imagined, and how it was judged."""

    action: Tensor  # [B, K, A] float32
    log_prob: Tensor  # [B] float32
    record: Slots | None  # tensors [B, ...], what the policy's `log_prob` needs
    frames: Tensor  # [B, K, V, H, W, 3] uint8
    proprio: Tensor  # [B, K, P] float32
    reward: Tensor  # [B, K] float32 in [0, 1], the reflector's judgement after each frame
    stop: Tensor  # [B, K] bool, where the reflector would stop; all False in an episode that is not finite
    finite: Tensor  # [B] bool
    doubt: Tensor  # [B] float32 in [0, 1], of the world model; 0 if it cannot tell
    camera: Tensor | None = None  # [B, K, V, 3, 4] float32; None: all stay where they are
    held: Tensor | None = None  # [B] bool, whether something is held after the chunk; None: the world model cannot tell


@dataclass
class Rollouts(Slots):
    """The records of E = N * G episodes of at most T chunks, written by the engine."""

    action: Tensor  # [E, T, K, A] float32, as the policy gave it, not limited
    log_prob: Tensor  # [E, T] float32, under the policy that acted
    reward: Tensor  # [E, T, K] float32 in [0, 1], the reflector's judgement after each frame
    text: Tensor  # [E] int64, row of the table of instructions
    chunks: Tensor  # [E] int64, chunks acted, >= 1
    stop: Tensor  # [E] int64, steps until the reflector stopped it; the horizon if it never did
    stopped: Tensor  # [E] bool
    broken: Tensor  # [E] bool: a number was not finite; the episode has no weight
    doubt: Tensor  # [E] float32 in [0, 1], of the world model, of all chunks up to the stop; 0 if it cannot tell
    held: Tensor  # [E] bool: something was held after a chunk; False if the world model cannot tell
    record: Slots | None = None  # tensors [E, T, ...], what the policy's `log_prob` needs of each chunk
    video: Tensor | None = None  # [E, T * K + 1, V, H, W, 3] uint8, only if asked for
    proprio: Tensor | None = None  # [E, T * K + 1, P] float32, with the video

    @classmethod
    def empty(
        cls,
        starts: Starts,
        horizon: int,
        chunk: int,
        actions: int,
        record: Slots | None,  # tensors [1, ...], as a decision has them
        siblings: int = 1,
        video: bool = False,
        steps: int | None = None,  # actions after which an episode ends; None: horizon * chunk
    ) -> "Rollouts":
        e, seen, frames = len(starts) * siblings, starts.seen, horizon * chunk + 1
        zeros = partial(torch.zeros, dtype=torch.float32, device=starts.device)
        return cls(
            action=zeros(e, horizon, chunk, actions),
            log_prob=zeros(e, horizon),
            reward=zeros(e, horizon, chunk),
            text=seen.text.repeat_interleave(siblings, 0),
            chunks=zeros(e, dtype=torch.long),
            stop=torch.full((e,), steps or horizon * chunk, dtype=torch.long, device=starts.device),
            stopped=zeros(e, dtype=torch.bool),
            broken=zeros(e, dtype=torch.bool),
            doubt=zeros(e),
            held=zeros(e, dtype=torch.bool),
            record=record and record.each(lambda one: one.new_zeros(e, horizon, *one.shape[1:])),
            video=zeros(e, frames, *seen.frames.shape[1:], dtype=torch.uint8) if video else None,
            proprio=zeros(e, frames, *seen.proprio.shape[1:]) if video else None,
        )

    def note(self, live: Episodes, step: Step) -> None:
        """Record one chunk; `live` are the episodes as they were before it. The first stop of an episode counts.

        Raises UserError for a record of the policy that is of another kind than its first one.
        """
        row, k = live.row, step.action.shape[1]
        place = (row, live.chunk)
        self.action[place], self.log_prob[place], self.reward[place] = step.action, step.log_prob, step.reward
        if self.record is not None:
            _check_record(self.record, step.record)
            for mine, new in zip(self.record.tensors(), step.record.tensors(), strict=True):
                words(mine, 2)[place] = words(new.contiguous())
        if self.video is not None:
            steps = live.chunk[:, None] * k + 1 + torch.arange(k, device=row.device)
            self.video[row[:, None], steps] = step.frames
            self.proprio[row[:, None], steps] = step.proprio
        doubt = torch.where(self.stopped[row], 0.0, step.doubt)
        self.doubt[row] += (1 - self.doubt[row]) * doubt
        if step.held is not None:
            self.held[row] |= step.held
        newly = step.stop.any(1) & ~self.stopped[row]
        self.stop[row] = torch.where(newly, live.chunk * k + 1 + step.stop.int().argmax(1), self.stop[row])
        self.stopped[row] |= newly
        self.broken[row] = ~step.finite
        self.chunks[row] = live.chunk + 1

    def forget(self, rows: Tensor, steps: int | None = None) -> None:
        """Clear the records of some episodes, of at most `steps` actions (None: T * K), as if they had never begun."""
        for tensor in self.tensors():
            if tensor is not self.text:
                tensor[rows] = 0
        self.stop[rows] = steps or self.reward[0].numel()

    def fail(self, rows: Tensor) -> None:  # [E] bool
        """Count some episodes as failures, whatever the reflector said: their rewards are 0, and none was stopped."""
        self.reward[rows] = 0
        self.stopped &= ~rows

    def to(self, device: torch.device | str) -> "Rollouts":
        return self.each(lambda tensor: tensor.to(device))

    def final_reward(self) -> Tensor:  # [E] float32
        """One scalar per episode: R at its stop, or at its last step (World-Env, arXiv 2509.24948, reward)."""
        return self.reward.flatten(1).gather(1, self.stop[:, None] - 1)[:, 0]

    def succeeded(self, likely: float | None = None, steps: int | None = None) -> Tensor:  # [E] bool
        """Which episodes are imagined to succeed within `steps` actions (None: all): those that the reflector stops.

        A stop asks for near certainty. `likely` is the reward from which on the reflector takes success for likely; if
        it has one, an episode with a higher reward at some time succeeds, too. A broken episode fails.
        """
        stopped = self.stopped & (self.stop <= (steps or self.reward[0].numel()))
        if likely is not None:
            stopped = stopped | (self.reward.flatten(1)[:, :steps] > likely).any(1)
        return stopped & ~self.broken

    def unsure(self) -> Tensor:  # [E] float32 in [0, 1]
        """How unsure it is that the imagined outcome is the true one: 1 - (1 - doubt) max(R, 1 - R).

        R is the highest reward up to the stop, so min(R, 1 - R) is the reflector's own doubt where its reward is a
        probability. A broken episode is 1.
        """
        steps = torch.arange(self.reward[0].numel(), device=self.stop.device)
        reward = torch.where(steps < self.stop[:, None], self.reward.flatten(1), 0.0).amax(1)
        return torch.where(self.broken, 1.0, 1 - (1 - self.doubt) * torch.maximum(reward, 1 - reward))


def _check_record(kept: Slots, new: Slots | None) -> None:
    mine = [(tensor.dtype, tensor.shape[2:]) for tensor in kept.tensors()]
    others = [] if new is None else [(tensor.dtype, tensor.shape[1:]) for tensor in new.tensors()]
    if mine != others:
        first, found = ([f"{dtype} {list(shape)}" for dtype, shape in each] for each in (mine, others))
        raise UserError(
            f"the policy returned a record of {', '.join(found) or 'nothing'} for each episode, and before of "
            f"{', '.join(first)}; it should be alike in every call, whatever the number of episodes"
        )
