"""True episodes as the simulator shows them: so that policy and reflector can read imagined frames like true ones."""

from dataclasses import replace

from worldenv.data.clips import Clips
from worldenv.worlds.composer.world import World


def as_imagined(world: World, clips: Clips, seed: int) -> Clips:
    """The same episodes with their frames replayed along the true poses; actions and labels are kept.

    The reflector learns to say of imagined frames how the true episode went, so that where the simulator is vague its
    reward is too; the policy learns to act on them as on the true ones. Steps beyond the last whole chunk keep the true
    frames.
    """
    imagined = world.replay(clips.frames[:, 0], clips.proprio, seed)
    frames = clips.frames.clone()
    frames[:, : imagined.shape[1]] = imagined
    return replace(clips, frames=frames)
