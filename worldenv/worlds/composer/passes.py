"""Chunks of any length from a network that makes K frames a pass.

The network makes K frames a pass, and so it was trained. Chunks of other lengths do not change that: a pass always
begins K frames after the one before. Where a chunk ends within a pass, the gripper is imagined to hold still from there
on, and the next chunk begins the same pass again with what is known by then. So the frames after every K-th action do
not depend on the length of chunks. (A pass begun anew at every chunk ruins the episode: benchmarks/LOG.md.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Protocol

import torch
from torch import Tensor

from worldenv.interfaces.slots import Slots

# Present frame, poses [B, K + 1, P], number of the pass [B] -> frames [B, K, H, W, 3], whether they are finite [B].
ImaginePass = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Pass(Slots):
    """The present pass of K frames, where episodes act in chunks that end within one: how it began."""

    frame: Tensor  # [E, H, W, 3] uint8, the last of the pass before
    poses: Tensor  # [E, K, P] float32, the gripper's from then on, as far as it has come


class HasPass(Protocol):
    """The memory of a world model whose passes may be begun again."""

    previous: Tensor  # [E, H, W, 3] uint8, moved on by every pass
    begun: Pass


def whole_passes(
    imagine_pass: ImaginePass,
    frame: Tensor,  # [B, H, W, 3] uint8
    poses: Tensor,  # [B, n K + 1, P] float32
    chunk: Tensor,  # [B] int64, chunks imagined before
    size: int,  # K
) -> tuple[Tensor, Tensor]:  # [B, n K, H, W, 3] uint8, [B] bool
    """A chunk of n passes, one after the other."""
    passes, out = (poses.shape[1] - 1) // size, []
    for i in range(passes):
        out.append(imagine_pass(frame, poses[:, i * size : (i + 1) * size + 1], chunk * passes + i))
        frame = out[-1][0][:, -1]
    if passes == 1:
        return out[0]
    frames, finite = zip(*out, strict=True)
    return torch.cat(frames, dim=1), torch.stack(finite).all(0)


def parts_of_passes(
    imagine_pass: ImaginePass,
    memory: HasPass,  # moved on in place
    poses: Tensor,  # [B, k + 1, P] float32, the present one first
    chunk: Tensor,  # [B] int64, chunks of k actions imagined before
    size: int,  # K
) -> tuple[Tensor, Tensor]:  # [B, k, H, W, 3] uint8, [B] bool
    """A chunk of k actions that begins or ends within a pass."""
    begun, k = memory.begun, poses.shape[1] - 1
    first, shown = chunk * k // size, chunk * k % size  # [B]: the present pass; how much of it has been seen
    passes = -(-(size - gcd(k, size) + k) // size)  # that the episode with the most behind it needs: all take as many
    at = torch.arange(passes * size + 1, device=poses.device)
    index = torch.where(at <= shown[:, None], at, size + (at - shown[:, None] - 1).clamp(max=k - 1))
    poses = _pick(torch.cat([begun.poses, poses[:, 1:]], dim=1), index)  # [B, passes K + 1, P], held at the end
    frames, finite = [], []
    for i in range(passes):
        complete, previous = shown + k >= (i + 1) * size, memory.previous.clone()
        new, sound = imagine_pass(begun.frame, poses[:, i * size : (i + 1) * size + 1], first + i)
        kept = complete[:, None, None, None]
        memory.previous.copy_(torch.where(kept, memory.previous, previous))
        begun.frame.copy_(torch.where(kept, new[:, -1], begun.frame))
        frames.append(new)
        finite.append(sound)
    to = (shown + k) // size * size  # where the pass begins that is the present one now
    ahead = torch.arange(size, device=poses.device)
    begun.poses.copy_(_pick(poses, (to[:, None] + ahead).clamp(max=passes * size)))
    seen = shown[:, None] + torch.arange(k, device=poses.device)
    row = torch.arange(len(seen), device=poses.device)
    return torch.cat(frames, dim=1)[row[:, None], seen], torch.stack(finite).all(0)


def _pick(poses: Tensor, index: Tensor) -> Tensor:  # [B, N, P], [B, M] -> [B, M, P]
    return poses.gather(1, index[..., None].expand(-1, -1, poses.shape[2]))
