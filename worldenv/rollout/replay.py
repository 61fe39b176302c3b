"""Open-loop replay: the actions of true episodes are imagined; no true frame is read after the first."""

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Starts
from worldenv.interfaces.world import WorldModel
from worldenv.rollout.checks import check_finite, check_imagined, check_seed, check_starts, check_state, given_tensor
from worldenv.rollout.modes import own_modes
from worldenv.rollout.parallel import in_parts


def replay(
    world: WorldModel,
    starts: Starts,  # N, on the device of the world model
    actions: Tensor,  # [N, T, A] float32, in [-1, 1]
    seed: int,
    first_episode: int = 0,  # id of the first episode, as of `Engine.run`
) -> Tensor:  # [N, T' + 1, V, H, W, 3] uint8, the start frame first; T' = T rounded down to whole passes
    """What the cameras would show if the robot carried out these actions; no policy, no stop.

    Raises UserError for starts or actions that do not fit the world model, and if it does not do what its interface
    says.
    """
    check_starts(starts, world)
    check_seed(seed)
    k, seen = world.chunk, starts.seen
    actions = given_tensor("actions", actions, starts.device, torch.float32)
    n, a = len(starts), world.robot.action_size
    if actions.ndim != 3 or (len(actions), actions.shape[2]) != (n, a):
        raise UserError(
            f"actions is {list(actions.shape)}; it should be [{n}, T, {a}]: starts, steps, numbers of an action"
        )
    if not actions.isfinite().all():
        raise UserError("actions has numbers that are not finite")
    steps = actions.shape[1] // k * k

    @torch.no_grad()  # is of a thread alone
    def work(rows: slice) -> None:
        now = seen[rows].each(torch.clone)
        memory = world.begin(now, k)
        check_state("the world model", memory, now)
        memory = memory.each(torch.clone)  # as in slots: `begin` may share tensors with others, or expand them
        ids = torch.arange(first_episode + rows.start, first_episode + rows.stop, device=starts.device)
        for first in range(0, steps, k):
            key = Key(seed, ids, torch.full_like(ids, first // k))
            action = actions[rows, first : first + k].clone()  # which the world model may write over
            imagined = world.imagine(memory, now, action, key)
            check_imagined(imagined, world, now, k)
            check_finite(imagined)
            now.frames.copy_(imagined.frames[:, -1])
            now.proprio.copy_(imagined.proprio[:, -1])
            if imagined.camera is not None:
                now.camera.copy_(imagined.camera[:, -1])
            out[rows, first + 1 : first + k + 1] = imagined.frames

    with own_modes(starts.device, world):
        out = seen.frames.new_empty(len(starts), steps + 1, *seen.frames.shape[1:])
        out[:, 0] = seen.frames
        in_parts(work, len(starts), device=starts.device)
    return out
