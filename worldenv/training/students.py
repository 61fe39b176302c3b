"""Few-step students of released world models: a copy with the teacher's layout, its part that learns, and its loss."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.nn import attention
from worldenv.training.distillation import METHODS, Denoiser, Loss, Method
from worldenv.training.share import Share
from worldenv.training.train_causal import Batch, causal_denoising, distillation_loss
from worldenv.training.train_video import batch_of, video_denoising
from worldenv.training.train_wan import wan_denoising
from worldenv.training.windows import Window, steps_of
from worldenv.worlds.causal.latents import LatentCausalWorld
from worldenv.worlds.causal.network import CausalConfig
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
    teacher: Teacher,
    clips: Clips,
    batch: int,
    steps: int,
    teacher_steps: int,
    method: Method = "trajectory",
    begun: LatentCausalWorld | None = None,
) -> Student:
    """A student of `steps` denoising steps that begins with the teacher's weights, or with those of `begun`.

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
    if begun is not None:
        return causal_student_of(teacher, begun, clips, batch, steps, teacher_steps, method)
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
    given = teacher.network, teacher.robot, clips, batch, _chunks(config, clips), levels, teacher_steps
    world = LatentCausalWorld(network, teacher.robot, levels, teacher.views[0], teacher.decode, teacher.folder)
    loss = distillation_loss(network, *given, method=method)
    return Student(world, network, loss, network.see.weight.dtype)


def causal_student_of(
    teacher: Teacher, begun: LatentCausalWorld, clips: Clips, batch: int, steps: int, teacher_steps: int, method: Method
) -> Student:
    """A causal student of a video-diffusion U-Net, in the latents of the same autoencoder; it trains `begun` itself.

    Both predict the clean latents of a chunk: the U-Net at sigma, the student at t = sigma / (1 + sigma) (see `euler`).
    Raises UserError if the two, or the recordings, do not fit.
    """
    _check_same_latents(teacher, begun)
    unet, network, config = teacher.network, begun.network.requires_grad_(True), begun.network.config
    many = [sigma / (1 + sigma) for sigma in replace(teacher.config, steps=teacher_steps).sigmas()]
    levels, read, k = tuple(1 - step / steps for step in range(steps)), batch_of(unet, clips), config.chunk

    def other(part: Batch) -> Denoiser:
        first, present = part.index[:, 0], part.index[:, -1 - k]
        window = Window(part.episode, first, present, steps_of(first, present, teacher.config.memory, k))
        known, cutter = read(window).known(unet), network.tokenizer

        def denoise(noisy: Tensor, t: float) -> Tensor:  # [B, K, L, C]
            whole = cutter.joined(noisy.flatten(0, 1), config.image_size).unflatten(0, noisy.shape[:2])
            clean = unet.denoised(whole / (1 - t), whole.new_full((len(whole),), t / (1 - t)), known)
            return cutter.cut(clean.flatten(0, 1)).unflatten(0, noisy.shape[:2])

        return denoise

    draw = causal_denoising(network, begun.robot, clips, _chunks(config, clips), Share(batch), many[0], other)
    loss = METHODS[method](network, unet, draw, (many[0], *levels[1:], 0.0), many)
    world = LatentCausalWorld(network, begun.robot, levels, begun.views[0], begun.decode, begun.folder)
    return Student(world, network, loss, network.see.weight.dtype)


def _check_same_latents(teacher: Teacher, begun: LatentCausalWorld) -> None:
    if not isinstance(teacher, VideoWorld):
        raise UserError("a causal student needs a teacher of the kind svd; leave --student out for other teachers")
    if (teacher.chunk, teacher.size) != (begun.chunk, begun.size):
        raise UserError(
            f"the student imagines {begun.chunk} frames of {begun.size[0]} pixels at a time, the teacher "
            f"{teacher.chunk} of {teacher.size[0]}: make a student with `chunk` and `image_size` of the teacher"
        )
    theirs, ours = teacher.network.tokenizer, begun.network.tokenizer.frames
    old, new = theirs.state_dict(), ours.state_dict()
    is_same = old.keys() == new.keys() and (theirs.scale, theirs.shift) == (ours.scale, ours.shift)
    if not (is_same and all(torch.equal(old[name].float(), new[name].float()) for name in new)):
        raise UserError(
            "the student's autoencoder is not that of the teacher, so their latents differ: make the student again, "
            "with a copy of the teacher's folder vae/"
        )


def _chunks(config: CausalConfig, clips: Clips) -> int:  # of an example: the whole memory, if clips are so long
    return max(1, min(1 + config.window // config.chunk, int(clips.length.max()) // config.chunk))


def _copied(network: nn.Module, *shared: nn.Module) -> nn.Module:
    return copy.deepcopy(network, {id(module): module for module in shared})


MAKERS: dict[type, Callable[..., Student]] = {
    VideoWorld: _of_video,
    WanWorld: _of_wan,
    LatentCausalWorld: _of_latents,
}
