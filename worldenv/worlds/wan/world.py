"""RLinf's Wan world models behind the interface `WorldModel`: the past is two latents and five actions."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from worldenv.data.formats.rlinf import GROUP, RlinfConfig
from worldenv.data.orientation import STEPS
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.suite import Suite
from worldenv.interfaces.world import Imagined
from worldenv.ops.philox import Use, philox
from worldenv.robot.robot import Robot
from worldenv.worlds.wan.folder import inspect_wan, read_wan, write_wan
from worldenv.worlds.wan.network import CONTEXT, KNOWN, TIMES, WanNetwork

OPEN = -1.0  # what the gripper is told before the first action


@dataclass
class WanMemory(Slots):
    """What a pass knows of E episodes."""

    latents: Tensor  # [E, C, 2, h, w], of the first frame of the episode and of the last four
    actions: Tensor  # [E, 5, A] float32, that led to these frames
    first: Tensor | None  # [E, H, W, 3] uint8 in their orientation, where four frames are encoded anew after it
    motion: Tensor | None  # [E, P] float32, of an arm that coasts


class WanWorld:
    """A pass denoises two latents, of eight frames; the policy's chunk may be several passes long.

    Proprioception follows from the robot's kinematics; without any, it stays what it was in the first observation, and
    only a policy that does not read it fits (`moves_proprio`).
    """

    def __init__(
        self,
        network: WanNetwork,
        robot: Robot,
        config: RlinfConfig,
        view: str = "agentview",
        folder: Path | None = None,
    ):
        self.network, self.robot, self.config, self.folder = network, robot, config, folder
        self.views, self.size, self.chunk = (view,), (config.size, config.size), config.chunk

    @property
    def moves_proprio(self) -> bool:
        return self.robot.kinematics is not None

    @property
    def device(self) -> torch.device:
        return self.network.vae.mean.device

    @torch.no_grad()
    def begin(self, seen: Observation, chunk: int) -> WanMemory:
        """The memory of episodes that begin with this observation, as if the robot had stood still for five frames.

        Raises UserError for chunks that are not whole passes.
        """
        if chunk % self.chunk:
            raise UserError(
                f"this world model imagines {self.chunk} frames per pass; a chunk should be a multiple of that, not "
                f"{chunk}"
            )
        first = self.turned(seen.frames[:, 0])  # a copy
        latents = self.network.vae.encode(first[:, None].expand(-1, CONTEXT, -1, -1, -1))
        actions = self.rest(seen.proprio)
        motion = self.robot.kinematics.rest(seen.proprio) if self.moves_proprio else None
        return WanMemory(latents, actions, first if self.config.context == "frames" else None, motion)

    @torch.no_grad()
    def imagine(self, memory: WanMemory, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """Imagine one chunk of one or more passes."""
        proprio = self._led(memory, seen, action)
        parts = action.clamp(-1, 1).split(self.chunk, dim=1)
        shown, frames, finite = seen.frames[:, 0], [], []
        for number, part in enumerate(parts):
            new = self._pass(memory, part, key._replace(chunk=key.chunk * len(parts) + number))
            finite.append(new.isfinite().flatten(1).all(1))
            is_shown = self.config.decode == "all" or number + 1 == len(parts)
            video = None
            if is_shown or self.config.context == "frames":
                video = self.network.vae.decode(torch.cat([memory.latents, new], dim=2), skip=KNOWN)
            frames.append(self.turned(video) if is_shown else shown[:, None].expand(-1, self.chunk, -1, -1, -1))
            shown = frames[-1][:, -1]
            self._remember(memory, part, new, video)
        return Imagined(torch.cat(frames, dim=1)[:, :, None], proprio, torch.stack(finite).all(0))

    def rest(self, like: Tensor) -> Tensor:  # [B, ...] -> [B, 5, A]
        """The actions of robots that stand still with open grippers."""
        actions = like.new_zeros(len(like), CONTEXT, self.robot.action_size)
        actions[..., -1] = OPEN
        return actions

    def _led(self, memory: WanMemory, seen: Observation, action: Tensor) -> Tensor:  # [B, K, P]
        """Where the actions lead."""
        if not self.moves_proprio:
            return seen.proprio[:, None].repeat(1, action.shape[1], 1)
        proprio, motion = self.robot.kinematics.follow(seen.proprio, memory.motion, action)
        if motion is not None:
            memory.motion.copy_(motion)
        return proprio

    def _pass(self, memory: WanMemory, action: Tensor, key: Key) -> Tensor:  # [B, C, n, h, w]
        """The latents of the frames that follow, by Euler steps from noise."""
        known = memory.latents
        actions = torch.cat([memory.actions, action], dim=1)
        shape = (known.shape[1], self.chunk // GROUP, *known.shape[3:])
        new = philox(*key, Use.FRAME, shape, normal=True).to(known.dtype)
        for sigma, after in pairwise(self.config.sigmas()):
            new = new + (after - sigma) * self.network.velocity(torch.cat([known, new], dim=2), sigma, actions)
        return new

    def _remember(self, memory: WanMemory, action: Tensor, new: Tensor, video: Tensor | None) -> None:
        if self.config.context == "frames":
            last = torch.cat([memory.first[:, None], video[:, -GROUP:]], dim=1)
            memory.latents.copy_(self.network.vae.encode(last))
        else:
            memory.latents[:, :, -1] = new[:, :, -1]
        memory.actions[:, 1:] = action[:, -GROUP:]

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Encoder and decoder of the autoencoder and one denoising step. Pictures lie as the authors' do."""
        vae, latents, new = self.network.vae, KNOWN, self.chunk // GROUP
        shrink, channels = vae.model.config.scale_factor_spatial, vae.model.config.z_dim

        def drawn(rows: int, frames: int) -> torch.Tensor:  # latents of so many
            return torch.randn(rows, channels, frames, *(side // shrink for side in self.size))

        def frames(rows: int) -> dict[str, Tensor]:
            return {"frames": torch.randint(256, (rows, CONTEXT, *self.size, 3), dtype=torch.uint8)}

        def noisy(rows: int) -> dict[str, Tensor]:
            actions = 2 * torch.rand(rows, CONTEXT + self.chunk, self.robot.action_size) - 1
            return {"latents": drawn(rows, latents + new), "noise_level": TIMES * torch.rand(rows), "actions": actions}

        return {
            "encoder": Piece(vae, vae.encode, frames, ("latents",)),
            "decoder": Piece(vae, vae.pixels, lambda rows: {"latents": drawn(rows, latents + new)}, ("pixels",)),
            "denoising-step": Piece(self.network, self.network.velocity_at, noisy, ("velocity",)),
        }

    def turned(self, frames: Tensor) -> Tensor:  # [..., H, W, 3]; its own inverse
        """Copies of upright pictures in the authors' orientation, or of the authors' pictures upright."""
        rows, columns = STEPS[self.config.orientation]
        return frames.flip([axis for axis, step in ((-3, rows), (-2, columns)) if step < 0])

    def write_back(self, folder: Path | str) -> Path:
        """Write the world model as it is now, in the layout in which it was loaded; see `write_wan`."""
        if self.folder is None:
            raise UserError("this world model was made from parts, not from a folder; save its network yourself")
        return write_wan(self.network, self.config, self.folder, folder)


def load_wan(folder: Path | str, suite: Suite, config: RlinfConfig | None = None) -> WanWorld:
    """A world model from its folder in the authors' layout, with the settings in its worldenv.json, or these.

    Raises UserError, before anything large is read, as `inspect_wan` does.
    """
    found = inspect_wan(folder, suite, config)
    return WanWorld(read_wan(found), suite.robot, found.config, suite.views[0], found.folder)
