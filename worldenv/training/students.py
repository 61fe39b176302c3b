"""Few-step students of released world models: a copy with the teacher's layout, its part that learns, and its loss."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.nn import attention
from worldenv.training.distillation import METHODS, Loss, Method
from worldenv.training.train_causal import distillation_loss
from worldenv.training.train_video import video_denoising
from worldenv.training.train_wan import wan_denoising
from worldenv.worlds.causal.latents import LatentCausalWorld
from worldenv.worlds.video.folder import Ours
from worldenv.worlds.video.network import VideoUNet
from worldenv.worlds.video.world import VideoWorld
from worldenv.worlds.wan.network import WanNetwork
from worldenv.worlds.wan.world import WanWorld

Teacher = VideoWorld | WanWorld | LatentCausalWorld
# The noise level of the last pass, for a student of several passes. The sampler's own sigma_min (0.002 in Stable Video
# Diffusion) would leave almost nothing for that pass to do. 1 is t = 1/2 of flow matching.
LAST_SIGMA = 1.0


@dataclass(frozen=True)
class Student:
    """A copy of a teacher that shares its frozen parts. It learns in float32, whatever the teacher is stored in."""

    world: Teacher
    learns: nn.Module
    loss: Loss
    dtype: torch.dtype  # of the teacher

    def write(self, folder: Path) -> Path:
        """Write the student in the layout of its teacher, and as a world model of the same kind."""
        self.learns.to(self.dtype)
        return self.world.write_back(folder)


def student_of(
    teacher: Teacher, clips: Clips, batch: int, steps: int, teacher_steps: int, method: Method = "trajectory"
) -> Student:
    """A student of `steps` denoising steps that begins with the teacher's weights.

    Raises UserError if the recordings do not fit the teacher.
    """
    shown, acted, felt, robot = clips.views[0], clips.actions.shape[-1], clips.proprio.shape[-1], teacher.robot
    if attention.WANTED == "ours":
        raise UserError(
            "WORLDENV_ATTENTION is ours, which has no gradient: a student cannot learn with it; leave it unset"
        )
    if shown != teacher.views[0]:
        raise UserError(
            f"the recordings show {shown} first, and the world model imagines {teacher.views[0]}; "
            "give recordings that have this view first"
        )
    if acted != robot.action_size or (felt != robot.proprio_size and not isinstance(teacher, WanWorld)):
        raise UserError(
            f"the recorded actions have {acted} numbers and proprioception {felt}; those of the suite's robot have "
            f"{robot.action_size} and {robot.proprio_size}: give recordings of this robot, or another --suite"
        )
    return MAKERS[type(teacher)](teacher, clips, batch, steps, teacher_steps, method)


def _of_video(teacher: VideoWorld, clips: Clips, batch: int, steps: int, teacher_steps: int, method: Method) -> Student:
    network: VideoUNet = _copied(teacher.network, teacher.network.tokenizer, teacher.network.conditioning.encoders)
    config, dtype = teacher.config, network.dtype
    network.config = replace(config, steps=steps, sigma_min=LAST_SIGMA if steps > 1 else config.sigma_min)
    learns = nn.ModuleList([network.unet, Ours(network)]).float().requires_grad_(True)
    draw = video_denoising(teacher.network, clips, batch)
    many = replace(config, steps=teacher_steps).sigmas()
    loss = METHODS[method](network, teacher.network, draw, network.config.sigmas(), many)
    return Student(VideoWorld(network, teacher.views[0], teacher.folder), learns, loss, dtype)


def _of_wan(teacher: WanWorld, clips: Clips, batch: int, steps: int, teacher_steps: int, method: Method) -> Student:
    network: WanNetwork = _copied(teacher.network, teacher.network.vae)
    config, dtype = replace(teacher.config, steps=steps), network.dtype
    learns = network.transformer.float().requires_grad_(True)
    many = replace(config, steps=teacher_steps).sigmas()
    draw = wan_denoising(teacher, clips, batch)
    loss = METHODS[method](network, teacher.network, draw, config.sigmas(), many)
    return Student(WanWorld(network, teacher.robot, config, teacher.views[0], teacher.folder), learns, loss, dtype)


def _of_latents(
    teacher: LatentCausalWorld, clips: Clips, batch: int, steps: int, teacher_steps: int, method: Method
) -> Student:
    network = _copied(teacher.network, teacher.network.tokenizer.frames).requires_grad_(True)
    levels, config = tuple(1 - step / steps for step in range(steps)), network.config
    chunks = max(1, min(1 + config.window // config.chunk, int(clips.length.max()) // config.chunk))  # its whole memory
    given = teacher.network, teacher.robot, clips, batch, chunks, levels, teacher_steps
    world = LatentCausalWorld(network, teacher.robot, levels, teacher.views[0], teacher.decode, teacher.folder)
    loss = distillation_loss(network, *given, method=method)
    return Student(world, network, loss, network.see.weight.dtype)


def _copied(network: nn.Module, *shared: nn.Module) -> nn.Module:
    return copy.deepcopy(network, {id(module): module for module in shared})


MAKERS: dict[type, Callable[..., Student]] = {
    VideoWorld: _of_video,
    WanWorld: _of_wan,
    LatentCausalWorld: _of_latents,
}
