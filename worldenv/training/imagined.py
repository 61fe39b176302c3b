"""True episodes as the simulator shows them: so that policy and reflector can read imagined frames like true ones."""

from dataclasses import replace

import torch

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.worlds.composer.world import World


def as_imagined(world: World, clips: Clips, seed: int) -> Clips:
    """The same episodes, in memory, with the first view replayed along the true poses; all else is kept.

    The reflector learns to say of imagined frames how the true episode went, so that where the simulator is vague its
    reward is too; the policy learns to act on them as on the true ones. Steps beyond the last whole chunk keep the true
    frames.
    """
    episodes, steps = torch.arange(len(clips)), torch.arange(clips.proprio.shape[1])
    frames = clips.frames_at(episodes, steps.expand(len(clips), -1))
    imagined = world.replay(frames[:, 0, 0], clips.proprio, seed)
    frames[:, : imagined.shape[1], 0] = imagined
    return replace(clips, stored=MemoryFrames.padded(frames))
