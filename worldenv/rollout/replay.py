"""Open-loop replay: the actions of true episodes are imagined; no true frame is read after the first."""

import torch
from torch import Tensor

from worldenv.interfaces.observation import Key, Starts
from worldenv.interfaces.world import WorldModel
from worldenv.rollout.parallel import in_parts
from worldenv.rollout.runner import check_starts


@torch.inference_mode(False)  # its threads are not in it
@torch.no_grad()
def replay(
    world: WorldModel,
    starts: Starts,  # N, on the device of the world model
    actions: Tensor,  # [N, T, A] float32, in [-1, 1]
    seed: int,
) -> Tensor:  # [N, T' + 1, V, H, W, 3] uint8, the start frame first; T' = T rounded down to whole passes
    """What the cameras would show if the robot carried out these actions; no policy, no stop.

    Raises UserError for starts that do not fit the world model.
    """
    check_starts(starts, world)
    k, seen = world.chunk, starts.seen
    steps = actions.shape[1] // k * k
    out = seen.frames.new_empty(len(starts), steps + 1, *seen.frames.shape[1:])
    out[:, 0] = seen.frames

    @torch.no_grad()  # is of a thread alone
    def work(rows: slice) -> None:
        now = seen[rows].each(torch.clone)
        memory = world.begin(now, k)
        ids = torch.arange(rows.start, rows.stop, device=starts.device)
        for first in range(0, steps, k):
            key = Key(seed, ids, torch.full_like(ids, first // k))
            imagined = world.imagine(memory, now, actions[rows, first : first + k], key)
            now.frames.copy_(imagined.frames[:, -1])
            now.proprio.copy_(imagined.proprio[:, -1])
            out[rows, first + 1 : first + k + 1] = imagined.frames

    in_parts(work, len(starts), device=starts.device)
    return out
