"""Chunks of any length from a network that makes K frames per pass.

The network was trained to make K frames per pass. Chunks of other lengths do not change that: a pass always begins K
frames after the one before. If a chunk ends within a pass, the pass assumes that the gripper stands still from there
on, and the next chunk repeats the same pass with the poses that are known by then. So the frames after every K-th
action do not depend on the length of chunks. (A new pass at every chunk would ruin the episode: benchmarks/LOG.md.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from worldenv.interfaces.slots import Slots


class Passed(NamedTuple):
    """What one pass imagined for B episodes, or several of them."""

    frames: Tensor  # [B, K, H, W, 3] uint8
    finite: Tensor  # [B] bool, whether every pixel came out finite
    doubt: Tensor  # [B] float32 in [0, 1], how unsure it is that it comes so


ImaginePass = Callable[[Tensor, Tensor, Tensor], Passed]  # present frame, poses [B, K + 1, P], number of the pass [B]


@dataclass
class Pass(Slots):
    """How the present pass began, for episodes whose chunks end within a pass."""

    frame: Tensor  # [E, H, W, 3] uint8, the last of the pass before
    poses: Tensor  # [E, K, P] float32, poses of the gripper since then, as far as they are known


class HasPass(Protocol):
    """The memory of a world model that can repeat a pass."""

    layer: Slots  # moved on by every pass
    begun: Pass


def passes_of(chunk: int, size: int) -> int:
    """Passes that a chunk takes: as many as the episode that needs most; all take as many."""
    return -(-(size - gcd(chunk, size) + chunk) // size)


def whole_passes(
    imagine_pass: ImaginePass,
    frame: Tensor,  # [B, H, W, 3] uint8
    poses: Tensor,  # [B, n K + 1, P] float32
    chunk: Tensor,  # [B] int64, chunks imagined before
    size: int,  # K
) -> Passed:  # n K frames
    """A chunk of n passes, one after the other."""
    passes, out = (poses.shape[1] - 1) // size, []
    for i in range(passes):
        out.append(imagine_pass(frame, poses[:, i * size : (i + 1) * size + 1], chunk * passes + i))
        frame = out[-1].frames[:, -1]
    return joined(out)


def joined(passes: Sequence[Passed]) -> Passed:
    """Passes of the same episodes, one after the other."""
    if len(passes) == 1:
        return passes[0]
    frames, finite, doubt = zip(*passes, strict=True)
    return Passed(torch.cat(frames, dim=1), torch.stack(finite).all(0), _of_all(doubt))


def parts_of_passes(
    imagine_pass: ImaginePass,
    memory: HasPass,  # moved on in place
    poses: Tensor,  # [B, k + 1, P] float32, the present one first
    chunk: Tensor,  # [B] int64, chunks of k actions imagined before
    size: int,  # K
) -> Passed:  # k frames
    """A chunk of k actions that begins or ends within a pass. A pass is doubted once, when it is complete."""
    begun, k = memory.begun, poses.shape[1] - 1
    first, shown = chunk * k // size, chunk * k % size  # [B]: number of the present pass; frames of it that were shown
    passes = passes_of(k, size)
    at = torch.arange(passes * size + 1, device=poses.device)
    index = torch.where(at <= shown[:, None], at, size + (at - shown[:, None] - 1).clamp(max=k - 1))
    poses = _pick(torch.cat([begun.poses, poses[:, 1:]], dim=1), index)  # [B, passes K + 1, P], the last pose repeated
    frames, finite, doubt = [], [], []
    for i in range(passes):
        complete, before = shown + k >= (i + 1) * size, memory.layer.each(torch.clone)
        new, is_finite, unsure = imagine_pass(begun.frame, poses[:, i * size : (i + 1) * size + 1], first + i)
        for now, old in zip(memory.layer.tensors(), before.tensors(), strict=True):
            now.copy_(torch.where(complete.view(-1, *[1] * (now.ndim - 1)), now, old))
        begun.frame.copy_(torch.where(complete[:, None, None, None], new[:, -1], begun.frame))
        frames.append(new)
        finite.append(is_finite)
        doubt.append(unsure * complete)
    to = (shown + k) // size * size  # first frame of what is now the present pass
    ahead = torch.arange(size, device=poses.device)
    begun.poses.copy_(_pick(poses, (to[:, None] + ahead).clamp(max=passes * size)))
    seen = shown[:, None] + torch.arange(k, device=poses.device)
    row = torch.arange(len(seen), device=poses.device)
    return Passed(torch.cat(frames, dim=1)[row[:, None], seen], torch.stack(finite).all(0), _of_all(doubt))


def _of_all(doubt: Sequence[Tensor]) -> Tensor:  # [B] each -> [B]
    return 1 - (1 - torch.stack(tuple(doubt))).prod(0)


def _pick(poses: Tensor, index: Tensor) -> Tensor:  # [B, N, P], [B, M] -> [B, M, P]
    return poses.gather(1, index[..., None].expand(-1, -1, poses.shape[2]))
