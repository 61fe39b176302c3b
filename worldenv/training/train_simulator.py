"""Train the world simulator: a multi-step teacher on true clips, then a student of one step on its own rollouts."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.ops.action_map import action_map
from worldenv.simulator.network import Seen, Simulator
from worldenv.simulator.transport import transport
from worldenv.vision import to_float

CHANGE_WEIGHT = 10.0  # pixels that change within the chunk count this much more: they are few, and all that matters
CHANGE_LEVEL = 0.15  # what counts as change, of the range [-1, 1]
PURE_NOISE_SHARE = 0.4  # of the training samples start at t = 1, where few-step sampling spends its pass
MEMORY_NOISE = 0.04  # largest standard deviation added to memory frames: blunts drift


class ChunkBatch:
    """B chunks of true clips, ready for the simulator: memory, action map, poses and the frames that follow."""

    def __init__(self, clips: Clips, projection: Tensor, chunk: int, episode: Tensor, step: Tensor):
        index = step[:, None] + torch.arange(chunk + 1)
        size = clips.frames.shape[2]
        self.projection = projection
        self.poses = clips.proprio[episode[:, None], index]
        self.maps = action_map(self.poses.flatten(0, 1), projection, size, size).unflatten(0, (len(episode), chunk + 1))
        frames = clips.frames[episode[:, None], index[:, 1:]]
        self.clean = _unit(frames)
        self.memory = _unit(torch.stack([clips.frames[episode, 0], clips.frames[episode, (step - chunk).clamp(min=0)],
                                         clips.frames[episode, step]], dim=1))  # fmt: skip

    def seen_by(self, simulator: Simulator, memory: Tensor) -> Seen:
        """What the simulator knows before the noise, from these memory frames."""
        return simulator.see(memory, transport(memory[:, -1], self.poses, self.projection), self.maps, self.poses)


def _unit(frames: Tensor) -> Tensor:  # [B, K, H, W, 3] uint8 -> [B, K, 3, H, W] in [-1, 1]
    return to_float(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


def draw_steps(clips: Clips, batch: int, chunks: int, chunk: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (episode, step) with room for `chunks` chunks within the episode's own steps (at least from step 0)."""
    episode = torch.randint(len(clips), (batch,), generator=generator)
    room = (clips.length[episode] - chunk * chunks + 1).clamp(min=1)
    last = clips.frames.shape[1] - 1 - chunk * chunks
    if last < 0:
        raise ValueError(f"the longest clip has {clips.frames.shape[1] - 1} steps; {chunks} chunks of {chunk} are more")
    return episode, (torch.rand(batch, generator=generator) * room).long().clamp(max=last)


def change_weight(clean: Tensor, last: Tensor) -> Tensor:  # [B, K, 1, H, W]
    """1, and 1 + CHANGE_WEIGHT for pixels that differ from the last memory frame."""
    return 1 + CHANGE_WEIGHT * ((clean - last[:, None]).abs().amax(2, keepdim=True) > CHANGE_LEVEL)


def teacher_loss(
    simulator: Simulator, clips: Clips, projection: Tensor, batch: int
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Flow matching, x_t = (1 - t) x_0 + t noise, with clean frames predicted: squared error times `change_weight`."""
    chunk = simulator.config.chunk

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        part = ChunkBatch(clips, projection, chunk, *draw_steps(clips, batch, 1, chunk, generator))
        amount = MEMORY_NOISE * torch.rand(batch, 1, 1, 1, 1, generator=generator)
        memory = part.memory + amount * torch.randn(part.memory.shape, generator=generator)
        t = torch.rand(batch, generator=generator) * 0.95 + 0.05
        t = torch.where(torch.rand(batch, generator=generator) < PURE_NOISE_SHARE, 1.0, t)
        mix = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - mix) * part.clean + mix * torch.randn(part.clean.shape, generator=generator)
        predicted = simulator.denoise(noisy, t, part.seen_by(simulator, memory))
        weight = change_weight(part.clean, part.memory[:, -1])
        value = (weight * (predicted - part.clean).square()).mean()
        return value, {"mse": (predicted.detach() - part.clean).square().mean().item()}

    return loss


def student_loss(
    student: Simulator, clips: Clips, projection: Tensor, batch: int, unroll: int
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """One pass from pure noise, learned on the student's own rollouts.

    The student, which begins as the teacher, imagines `unroll` chunks in a row, each from its own last one, and each is
    pulled to the true frames: absolute error, weighted as `change_weight`. The absolute error asks for the likelier of
    two outcomes where the squared one asks for a ghost of both. Gradients do not flow from chunk to chunk.
    """
    chunk = student.config.chunk

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode, step = draw_steps(clips, batch, unroll, chunk, generator)
        memory, total, errors = None, torch.zeros(()), []
        for i in range(unroll):
            part = ChunkBatch(clips, projection, chunk, episode, step + i * chunk)
            memory = part.memory if memory is None else memory
            noise = torch.randn(part.clean.shape, generator=generator)
            predicted = student.denoise(noise, torch.ones(batch), part.seen_by(student, memory))
            weight = change_weight(part.clean, part.memory[:, -1])
            total = total + (weight * (predicted - part.clean).abs()).mean() / unroll
            errors.append((predicted.detach() - part.clean).square().mean().item())
            memory = torch.stack([memory[:, 0], memory[:, -1], predicted.detach().clamp(-1, 1)[:, -1]], dim=1)
        return total, {"mse_first": errors[0], "mse_last": errors[-1]}

    return loss
