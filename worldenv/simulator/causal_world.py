"""The causal simulator as rollouts use it: poses in, frames out, the past in each slot's ring."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worldenv.camera import Camera
from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.denoise_step import denoise_step
from worldenv.ops.philox import Use, philox
from worldenv.simulator.causal import Causal
from worldenv.simulator.ring import Ring
from worldenv.simulator.world import World, check_world

LEVELS = (1.0, 0.5)  # noise levels t of the passes over a chunk


class CausalWorld(World):
    """Network, camera and noise levels together; a new chunk computes nothing of the old frames again."""

    resumes = False  # what is imagined ahead takes the ring's oldest places

    def __init__(self, simulator: Causal, camera: Camera, levels: Sequence[float] = LEVELS):
        config = simulator.config
        self.simulator, self.levels = simulator, check_world(camera, config.image_size, levels)
        self.size, self.chunk = config.image_size, config.chunk
        shrink = torch.tensor([[1 / config.map_shrink], [1 / config.map_shrink], [1.0]])  # of the two pixel axes
        self.projection = (torch.from_numpy(camera.projection) * shrink).to(simulator.time_angle.device)

    @torch.no_grad()
    def begin(self, frame: Tensor, proprio: Tensor) -> Ring:  # [B, H, W, 3] uint8, [B, 7] float32
        """The rings of episodes that begin with these frames, the gripper at these poses."""
        ring, latents = self.simulator.new_ring(len(frame)), self.simulator.tokenizer.encode(frame)
        zero = torch.zeros(len(frame), dtype=torch.int32, device=frame.device)
        self.simulator.remember(latents, self._condition(proprio[:, None]), ring, zero, zero, zero + latents.shape[1])
        return ring

    @torch.no_grad()
    def imagine(
        self,
        memory: Ring,  # of B episodes, moved on in place
        frame: Tensor,  # [B, H, W, 3] uint8, the present one; the ring has it already
        poses: Tensor,  # [B, K + 1, 7] float32, the present one first
        seed: int,
        episode: Tensor,  # [B] int64, ids
        chunk: Tensor,  # [B] int64, chunks imagined before
    ) -> tuple[Tensor, Tensor]:  # [B, K, H, W, 3] uint8; [B] bool, whether every latent came out finite
        """The frames that follow when the gripper goes through `poses`."""
        config, network = self.simulator.config, self.simulator
        tokens, rooms = config.tokens * config.chunk, config.window // config.chunk + 1
        place = (config.tokens + chunk % rooms * tokens).int()
        length = (config.tokens + (chunk + 1).clamp(max=rooms) * tokens).int()
        here = memory, place, (1 + chunk * config.chunk).int(), length
        condition = self._condition(poses[:, 1:])
        x = philox(seed, episode, chunk, Use.FRAME, (tokens, config.channels), normal=True).to(condition.dtype)
        for step, (t, t_next) in enumerate(zip(self.levels, (*self.levels[1:], 0.0), strict=True)):
            velocity = network.velocity(x, x.new_full((len(x),), t), condition, *here)
            x = denoise_step(x, velocity, t, t_next, seed, episode, chunk, Use.AGAIN + step)
        network.remember(x, condition, *here)
        frames = network.tokenizer.decode(x.view(-1, config.tokens, config.channels), self.size)
        return frames.unflatten(0, (len(x), -1)), x.isfinite().flatten(1).all(1)

    def _condition(self, poses: Tensor) -> Tensor:  # [B, N, 7] -> [B, N L, D]
        (b, n, _), size = poses.shape, self.size // self.simulator.config.map_shrink
        maps = action_map(poses.flatten(0, 1), self.projection.expand(b * n, 1, 3, 4), Gripper(), size, size)
        return self.simulator.condition(maps[:, 0].unflatten(0, (b, n)), poses)
