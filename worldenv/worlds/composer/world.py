"""The composer, a world model: observation and actions in, frames out that are composed of known pictures."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.world import Imagined
from worldenv.nn.int8 import Ranges, in_int8, is_copy
from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.patchify import PATCH
from worldenv.ops.philox import Use, philox
from worldenv.ops.unpatchify import to_frames, unpatchify
from worldenv.records.model_files import load_model
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.hand import drawn_poses
from worldenv.robot.robot import Robot
from worldenv.worlds.composer.contact import Scene, follow, grasp_thresholds
from worldenv.worlds.composer.layer import APERTURE, POSITION, Layer
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork
from worldenv.worlds.composer.passes import Pass, Passed, joined, parts_of_passes, whole_passes
from worldenv.worlds.composer.sampler import sample
from worldenv.worlds.kinematics import with_kept
from worldenv.worlds.levels import check_levels, levels_of


@dataclass
class Memory(Slots):
    """What the composer keeps of each episode besides its last frame."""

    first: Tensor  # [E, H, W, 3] uint8, of the episode
    tips: Tensor  # [E, 3] float32 m, of the fingers in it
    layer: Layer  # moved on by every pass
    begun: Pass | None  # None if every chunk consists of whole passes
    motion: Tensor | None = None  # [E, P] float32, of an arm that coasts; None: the kinematics have none
    opening: Tensor | None = None  # [E] float32, of fingers with nothing between them; None: as in proprioception


class Led:
    """The poses of one pass: where the kinematics lead, until it is known what stops the grippers and their fingers."""

    def __init__(self, robot: Robot, pose: Tensor, motion: Tensor, actions: Tensor):  # [B, P], [B, P], [B, K, A]
        self.robot, self.given = robot, (pose, motion, actions)
        self.poses, self.after = self._lead(None)  # [B, K + 1, P]; [B, P], the motion after the last action
        self.opening: Tensor | None = None  # [B, K], lower bound of the fingers' opening after each action

    def stopped(self, lowest: Tensor) -> Tensor:  # [B] m -> [B, K + 1, P], as `drawn_poses` returns them
        self.poses, self.after = self._lead(lowest)
        return drawn_poses(self.poses, self.robot)

    def reported(self) -> Tensor:  # [B, K, P]
        """The poses after each action, with the fingers kept open by what they hold."""
        poses = self.poses[:, 1:].clone()
        poses[..., APERTURE] = torch.maximum(poses[..., APERTURE], self.opening)
        return poses

    def _lead(self, lowest: Tensor | None) -> tuple[Tensor, Tensor]:
        led, after = self.robot.kinematics.follow(*self.given, lowest)
        return torch.cat([self.given[0][:, None], led], dim=1), after


class ComposerWorld:
    """A world model of one view. Its network composes frames from known pictures; kinematics move the gripper."""

    tells_held = True
    ops = ("known_pictures", "map_features", "compose", "unpatchify")  # of its own; those of all networks not counted

    def __init__(self, network: ComposerNetwork, robot: Robot, levels: Sequence[float], view: str = "agentview"):
        if robot.kinematics is None or robot.gripper is None or robot.clear_m is None:
            raise UserError(
                "the composer needs a robot with kinematics, a gripper and `clear_m`, the height above which its "
                "fingertips touch nothing; choose another world model"
            )
        if network.config.leads and not isinstance(robot.kinematics, FittedKinematics):
            raise UserError(
                "this composer says where things stop the gripper or its fingers, and the robot's kinematics cannot "
                "take that into account; take a robot with FittedKinematics"
            )
        if view in robot.hand_views:
            raise UserError(
                f"the composer needs a camera that stands still, and {view} is on the hand: take another view"
            )
        self.network, self.robot, self.levels = network, robot, check_levels(levels)
        size = network.config.image_size
        self.views, self.size, self.chunk = (view,), (size, size), network.config.chunk

    @classmethod
    def load(cls, path: Path, robot: Robot, view: str = "agentview") -> "ComposerWorld":
        """From a file of the kind "composer" with the noise levels and, if they were fitted, the kinematics."""
        network, about = load_model(path, "composer", ComposerNetwork, ComposerConfig)
        return cls(network, with_kept(path, about, robot), levels_of(path, about), view)

    @property
    def device(self) -> torch.device:
        return self.network.plate.device

    def in_int8(self, ranges: Ranges) -> "ComposerWorld":
        """The same world model with its network in 8 bits; parameters are shared."""
        new = copy(self)
        new.network = in_int8(self.network, ranges)
        return new

    def begin(self, seen: Observation, chunk: int) -> Memory:
        """The memory of episodes that begin with this observation. Raises UserError if it has no camera."""
        if seen.camera is None:
            raise UserError("the composer draws the gripper through the camera; the observation has no camera matrix")
        frame, begun = seen.frames[:, 0], None
        if chunk % self.chunk:
            begun = Pass(frame.clone(), seen.proprio[:, None].repeat(1, self.chunk, 1))
        tips = seen.proprio[:, POSITION].clone()
        motion = self.robot.kinematics.rest(seen.proprio)
        opening = seen.proprio[:, APERTURE].clone() if self.network.config.held_open else None
        return Memory(frame.clone(), tips, Layer.begin(frame, tips), begun, motion, opening)

    @torch.no_grad()
    def imagine(self, memory: Memory, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """Imagine one chunk, in as many passes of the network as it needs."""
        if memory.begun is None and self.network.config.leads:
            return self._led_passes(memory, seen, action, key)
        proprio, motion = self.robot.kinematics.follow(seen.proprio, memory.motion, action)
        if motion is not None:
            memory.motion.copy_(motion)
        imagine_pass = partial(self._pass, memory, seen.camera, key)
        frame, poses = seen.frames[:, 0], torch.cat([seen.proprio[:, None], proprio], dim=1)
        if memory.begun is None:
            passed = whole_passes(imagine_pass, frame, poses, key.chunk, self.chunk)
        else:
            passed = parts_of_passes(imagine_pass, memory, poses, key.chunk, self.chunk)
        return self._imagined(memory, passed, proprio)

    def _led_passes(self, memory: Memory, seen: Observation, action: Tensor, key: Key) -> Imagined:
        """A chunk of whole passes, in which things and the floor stop the gripper, and held things stop its fingers."""
        frame, pose, parts, out, poses = seen.frames[:, 0], seen.proprio.clone(), action.split(self.chunk, 1), [], []
        if memory.opening is not None:
            pose[:, APERTURE] = memory.opening
        for i, part in enumerate(parts):
            led = Led(self.robot, pose, memory.motion, part)
            out.append(self._pass(memory, seen.camera, key, frame, led.poses, key.chunk * len(parts) + i, led))
            memory.motion.copy_(led.after)
            frame, pose = out[-1].frames[:, -1], led.poses[:, -1]
            poses.append(led.reported())
        if memory.opening is not None:
            memory.opening.copy_(pose[:, APERTURE])
        passed = joined(out)
        return self._imagined(memory, passed, torch.cat(poses, dim=1))

    @staticmethod
    def _imagined(memory: Memory, passed: Passed, proprio: Tensor) -> Imagined:
        held = memory.layer.held.clone()  # the next chunk moves the memory on
        return Imagined(passed.frames[:, :, None], proprio, passed.finite, passed.doubt, held=held)

    @staticmethod
    def _chance(key: Key) -> Tensor:  # [B], uniform
        """One random number for all grasps of an episode: what the picture does not show stays the same."""
        return philox(key.seed, key.episode, torch.zeros_like(key.chunk), Use.GRASP, (1,))[:, 0]

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """One denoising step of the network in floats, from known pictures and poses as `drawn_poses` returns them.

        Raises UserError for 8 bits.
        """
        network, side = self.network, self.size[0]
        if is_copy(network):
            raise UserError("a composer in 8 bits has no export: give the one in floats that it was made of")

        def given(rows: int) -> dict[str, Tensor]:
            shape = rows, side // 2, side // 2
            camera = torch.from_numpy(tabletop_camera(side).projection)  # one that sees the poses
            return {
                "noisy": torch.randn(*shape, self.chunk, PATCH),
                "noise_level": torch.rand(rows),
                "pictures": torch.randint(256, (*shape, network.config.sources - 1, PATCH), dtype=torch.uint8),
                "poses": torch.randn(rows, self.chunk + 1, 7) * 0.1,
                "camera": camera.repeat(rows, 1, 1, 1),
            }

        def step(noisy: Tensor, level: Tensor, pictures: Tensor, poses: Tensor, camera: Tensor) -> Tensor:
            return network.denoise(noisy, level, network.see(pictures, poses, camera, self.robot.gripper))

        return {"denoising-step": Piece(network, step, given, ("clean",))}

    def _pass(
        self,
        memory: Memory,  # moved on in place
        camera: Tensor,  # [B, 1, 3, 4] float32
        key: Key,  # of the chunk
        frame: Tensor,  # [B, H, W, 3] uint8, the present one
        poses: Tensor,  # [B, K + 1, P] float32, the present one first
        number: Tensor,  # [B] int64, passes before this one
        led: Led | None = None,  # where `poses` come from, if something may stop the gripper; moved on in place
    ) -> Passed:
        """The frames that follow when the gripper goes through `poses`: one pass of the network."""
        network, layer, poses = self.network, memory.layer, drawn_poses(poses, self.robot)
        scene = Scene(to_frames(network.plate[None, :, :, None])[0, 0], self.robot)
        threshold = grasp_thresholds(self._chance(key)) if network.config.samples_grasps else None
        stopped = led.stopped if led is not None and network.config.stops else None
        course = follow(network.contact, layer, frame, poses, camera[:, 0], scene, stopped, threshold)
        if led is not None:
            poses, led.opening = drawn_poses(led.poses, self.robot), course.opening
        places = torch.cat([layer.thing.origin[:, None], course.places], dim=1)
        tips = torch.cat([memory.tips[:, None], poses[..., POSITION]], dim=1)
        known = memory.first, course.frame, layer.scene(camera[:, 0], scene.plate), layer.thing.mask, course.hidden
        pictures = known_pictures(*known, tips, places, camera, network.plate)
        seen = network.see(pictures, poses, camera, self.robot.gripper)
        shape = self.size[0] // 2, self.size[1] // 2, poses.shape[1] - 1, PATCH
        noise = philox(key.seed, key.episode, number, Use.FRAME, shape, normal=True)
        return Passed(*unpatchify(sample(self.network, seen, noise, self.levels)), course.doubt)
