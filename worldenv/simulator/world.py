"""The world simulator as rollouts and training use it: frames and poses in, frames out, whatever the network inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from worldenv.camera import Camera
from worldenv.ops.patchify import PATCH
from worldenv.ops.philox import Use, philox
from worldenv.ops.transport import transport
from worldenv.ops.unpatchify import unpatchify
from worldenv.parallel import in_parts
from worldenv.simulator.network import Simulator
from worldenv.simulator.sampler import sample
from worldenv.slots import Slots


@dataclass
class Memory(Slots):
    """What the simulator remembers of each episode besides its last frame."""

    first: Tensor  # [E, H, W, 3] uint8, of the episode
    previous: Tensor  # [E, H, W, 3] uint8, the last one a chunk ago


def check_world(camera: Camera, size: int, levels: Sequence[float]) -> tuple[float, ...]:
    """The noise levels. Raises ValueError for a camera of another size, and for levels that do not fall from 1 to
    above 0: an episode begins as pure noise."""
    if camera.height != size or camera.width != size:
        raise ValueError(
            f"the camera has {camera.height} x {camera.width} pixels; the simulator imagines {size} x {size}"
        )
    levels = tuple(levels)
    if not levels or levels[0] != 1 or not levels[-1] > 0 or any(not a > b for a, b in pairwise(levels)):
        raise ValueError(f"levels is {levels}; they should begin with 1.0 and fall, all above 0")
    return levels


class World:
    """Network, camera and noise levels together. `CausalWorld` does the same another way."""

    resumes = True  # a pass can be imagined anew when more of its poses are known

    def __init__(self, simulator: Simulator, camera: Camera, levels: Sequence[float]):
        self.simulator, self.levels = simulator, check_world(camera, simulator.config.image_size, levels)
        self.projection, self.size = torch.from_numpy(camera.projection).to(simulator.plate.device), camera.height
        self.chunk = simulator.config.chunk

    def begin(self, frame: Tensor, proprio: Tensor) -> Memory:  # [B, H, W, 3] uint8, [B, 7] float32
        """The memory of episodes that begin with these frames, the gripper at these poses."""
        return Memory(frame, frame.clone())

    @property
    def device(self) -> torch.device:
        return self.projection.device

    @torch.no_grad()
    def imagine(
        self,
        memory: Memory,  # of B episodes, moved on in place
        frame: Tensor,  # [B, H, W, 3] uint8, the present one
        poses: Tensor,  # [B, K + 1, 7] float32, the present one first
        seed: int,
        episode: Tensor,  # [B] int64, ids
        chunk: Tensor,  # [B] int64, chunks imagined before
    ) -> tuple[Tensor, Tensor]:  # [B, K, H, W, 3] uint8; [B] bool, whether every pixel came out finite
        """The frames that follow when the gripper goes through `poses`."""
        frames = torch.stack([memory.first, memory.previous, frame], dim=1)
        pictures = transport(frames[:, :, None], poses, self.projection.expand(len(frame), 1, 3, 4))[:, 0]
        seen = self.simulator.see(pictures, poses, self.projection)
        shape = self.size // 2, self.size // 2, poses.shape[1] - 1, PATCH
        noise = philox(seed, episode, chunk, Use.FRAME, shape, normal=True)
        memory.previous.copy_(frame)
        return unpatchify(sample(self.simulator, seen, noise, self.levels))

    @torch.inference_mode(False)  # its threads are not in it
    @torch.no_grad()
    def replay(
        self,
        frame: Tensor,  # [N, H, W, 3] uint8, where the episodes begin
        poses: Tensor,  # [N, T * K + 1, 7] float32, the present pose first
        seed: int,
    ) -> Tensor:  # [N, T * K + 1, H, W, 3] uint8, the start frame first
        """What the camera would see if the gripper went through these poses; no policy, no stop."""
        k = self.chunk
        out = frame.new_empty(len(frame), (poses.shape[1] - 1) // k * k + 1, *frame.shape[1:])
        out[:, 0] = frame

        def work(rows: slice) -> None:
            ids = torch.arange(rows.start, rows.stop, device=frame.device)
            memory = self.begin(frame[rows], poses[rows, 0])
            for first in range(0, out.shape[1] - 1, k):
                here = poses[rows, first : first + k + 1]
                frames, _ = self.imagine(memory, out[rows, first], here, seed, ids, torch.full_like(ids, first // k))
                out[rows, first + 1 : first + k + 1] = frames

        in_parts(work, len(frame), device=frame.device)
        return out
