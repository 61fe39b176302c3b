"""True episodes as the world model shows them, so that policy and reflector can read imagined frames like true ones."""

from dataclasses import replace

import torch

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.interfaces.world import WorldModel
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.rollout.replay import replay


def as_imagined(world: WorldModel, clips: Clips, seed: int, ranks: Ranks = ALONE) -> Clips:
    """The same episodes, in memory, with their frames replayed open-loop along the true actions; all else is kept.

    The reflector learns to say of imagined frames how the true episode went, so that where the world model is vague its
    reward is too; the policy learns to act on them as on the true ones. Steps beyond the last whole pass keep the true
    frames. Several ranks share the episodes, and all return all of them.
    """
    episodes, steps = torch.arange(len(clips)), torch.arange(clips.proprio.shape[1])
    frames = clips.frames_at(episodes, steps.expand(len(clips), -1))
    texts, row = table_of(clips.instructions)
    camera = None if clips.camera is None else clips.cameras_at(episodes, torch.zeros_like(episodes)[:, None])[:, 0]
    starts = Starts(Observation(frames[:, 0], clips.proprio[:, 0].contiguous(), camera, row), texts)
    if len(clips) < ranks.count:
        ranks = ALONE
    rows = ranks.part(len(clips))
    begun, actions = starts.pick(episodes[rows]).to(world.device), clips.actions[rows].to(world.device)
    (imagined,) = ranks.gather(replay(world, begun, actions, seed, rows.start).cpu())
    frames[:, : imagined.shape[1]] = imagined
    return replace(clips, stored=MemoryFrames.padded(frames))
