"""How resident episodes begin and go on, whoever acts: kinematics, world simulator, reflector, one chunk at a time."""

from dataclasses import dataclass
from math import gcd
from numbers import Integral

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.reflector.small import Reflector
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.rollout.episodes import Episodes, Pass, Starts
from worldenv.worlds.composer.world import World


@dataclass
class Imagined(Slots):
    """Where a chunk of k actions leads B episodes."""

    frames: Tensor  # [B, k, H, W, 3] uint8
    proprio: Tensor  # [B, k, 7] float32
    reward: Tensor  # [B, k] float32 in [0, 1], the reflector's judgement after each frame
    over: Tensor  # [B, k] bool, where the reflector would stop; nowhere in a broken episode
    finite: Tensor  # [B] bool; False: the episode is broken


def check_starts(starts: Starts, world: World) -> None:
    """Raise UserError if there is no start, or one that the simulator cannot go on from."""
    shapes = {
        "frame": (torch.uint8, 4, "[N, H, W, 3]"),
        "proprio": (torch.float32, 2, "[N, 7]"),
        "tokens": (torch.int64, 2, "[N, L]"),
    }
    for name, (dtype, dimensions, wanted) in shapes.items():
        tensor = getattr(starts, name)
        if tensor.dtype != dtype or tensor.ndim != dimensions or len(tensor) != len(starts.frame):
            raise UserError(
                f"{name} of the starts is {tensor.dtype} {list(tensor.shape)}; it should be {dtype} "
                f"{wanted}, N = {len(starts.frame)}"
            )
    if starts.frame.shape[1:] != (world.size, world.size, 3):
        raise UserError(
            f"the starts have frames of {list(starts.frame.shape[1:])}; the simulator imagines "
            f"[{world.size}, {world.size}, 3]"
        )
    if not len(starts):
        raise UserError("there are no starts; at least one is needed")
    if starts.frame.device != world.device:
        raise UserError(
            f"the starts are on {starts.frame.device}, the simulator is on {world.device}; move them: starts.to(device)"
        )
    if starts.proprio.shape[1] != 7 or not starts.proprio.isfinite().all():
        raise UserError(f"proprio of the starts is {list(starts.proprio.shape)}; it should be 7 finite numbers each")


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that is no integer of 64 bits."""
    if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise UserError(f"seed is {seed}; it should be an integer of 64 bits")


def begin(
    new: Starts,
    row: Tensor,  # [B] int64
    id: Tensor,  # [B] int64
    instruction: Tensor,  # [B, ...], as the policy reads it
    judged: Tensor,  # [B, C], as the reflector has read it
    chunk: int,  # k
    world: World,
    reflector: Reflector,
) -> Episodes:
    """Episodes that have not acted yet; `new` and `instruction` must belong to nobody else."""
    begun = None
    if chunk % world.chunk:
        if not world.resumes:
            raise UserError(
                f"this simulator imagines {world.chunk} frames a pass; a chunk should be a multiple of "
                f"that, not {chunk}"
            )
        begun = Pass(new.frame.clone(), new.proprio[:, None].repeat(1, world.chunk, 1))
    memory, pooled = world.begin(new.frame.clone(), new.proprio), reflector.begin(new.frame, judged)
    return Episodes(row, id, torch.zeros_like(row), new.frame, new.proprio, instruction, memory, pooled, begun)


def advance(
    live: Episodes,  # B of them; `memory`, `pooled` and `begun` move on, the rest by `live.move_on`
    action: Tensor,  # [B, k, 7] float32
    world: World,
    reflector: Reflector,
    kinematics: Kinematics,
    seed: int,
) -> Imagined:
    """Imagine one chunk.

    The simulator makes K frames a pass, and so it was trained. Chunks of other lengths do not change that: a pass
    always begins K frames after the one before. Where a chunk ends within a pass, the gripper is imagined to hold still
    from there on, and the next chunk begins the same pass again with what is known by then. So the frames after every
    K-th action do not depend on k. (A pass begun anew at every chunk ruins the episode: benchmarks/LOG.md.)
    """
    proprio = chunk_kinematics(live.proprio, action, kinematics)
    frames, drawn = (_whole_passes if live.begun is None else _parts_of_passes)(live, proprio, world, seed)
    reward = reflector.judge(frames, live.pooled)
    finite = torch.isfinite((0 * action).sum((1, 2)) + reward.sum(1)) & drawn  # a sum is, where all of it is
    over = (reward > reflector.config.threshold) & finite[:, None]  # a broken episode is no success
    return Imagined(frames, proprio, reward, over, finite)


def _whole_passes(live: Episodes, proprio: Tensor, world: World, seed: int) -> tuple[Tensor, Tensor]:
    poses, passes = torch.cat([live.proprio[:, None], proprio], dim=1), proprio.shape[1] // world.chunk
    frame, out = live.frame, []
    for i in range(passes):
        part = poses[:, i * world.chunk : (i + 1) * world.chunk + 1]
        out.append(world.imagine(live.memory, frame, part, seed, live.id, live.chunk * passes + i))
        frame = out[-1][0][:, -1]
    if passes == 1:
        return out[0]
    frames, drawn = zip(*out, strict=True)
    return torch.cat(frames, dim=1), torch.stack(drawn).all(0)


def _parts_of_passes(live: Episodes, proprio: Tensor, world: World, seed: int) -> tuple[Tensor, Tensor]:
    begun, memory, k, size = live.begun, live.memory, proprio.shape[1], world.chunk
    first, shown = live.chunk * k // size, live.chunk * k % size  # [B]: the present pass; how much of it has been seen
    passes = -(-(size - gcd(k, size) + k) // size)  # that the episode with the most behind it needs: all take as many
    at = torch.arange(passes * size + 1, device=proprio.device)
    index = torch.where(at <= shown[:, None], at, size + (at - shown[:, None] - 1).clamp(max=k - 1))
    poses = _pick(torch.cat([begun.poses, proprio], dim=1), index)  # [B, passes K + 1, 7], held at the end
    frames, drawn = [], []
    for i in range(passes):
        complete, previous = shown + k >= (i + 1) * size, memory.previous.clone()
        part = poses[:, i * size : (i + 1) * size + 1]
        new, sound = world.imagine(memory, begun.frame, part, seed, live.id, first + i)
        kept = complete[:, None, None, None]
        memory.previous.copy_(torch.where(kept, memory.previous, previous))
        begun.frame.copy_(torch.where(kept, new[:, -1], begun.frame))
        frames.append(new)
        drawn.append(sound)
    to = (shown + k) // size * size  # where the pass begins that is the present one now
    ahead = torch.arange(size, device=proprio.device)
    begun.poses.copy_(_pick(poses, (to[:, None] + ahead).clamp(max=passes * size)))
    seen = shown[:, None] + torch.arange(k, device=proprio.device)
    row = torch.arange(len(seen), device=proprio.device)
    return torch.cat(frames, dim=1)[row[:, None], seen], torch.stack(drawn).all(0)


def _pick(poses: Tensor, index: Tensor) -> Tensor:  # [B, N, 7], [B, M] -> [B, M, 7]
    return poses.gather(1, index[..., None].expand(-1, -1, poses.shape[2]))
