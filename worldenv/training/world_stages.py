"""The stages that make a world model: one class for each kind, used by `Pipeline`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.ops.unpatchify import to_frames
from worldenv.records.checkpoint import load_weights, save_weights
from worldenv.records.model_files import load_model, save_model
from worldenv.training.config import TOKENIZER_FRAMES
from worldenv.training.contacts import record_contacts
from worldenv.training.layers import Layers
from worldenv.training.train_causal import causal_loss, distillation_loss, fit_tokenizer
from worldenv.training.train_composer import BACKGROUND_FRAMES, clean_background, student_loss, teacher_loss
from worldenv.training.train_contact import contact_loss
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.contact import ContactNetwork, Scene
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork
from worldenv.worlds.composer.sampler import STUDENT_LEVELS, TEACHER_LEVELS
from worldenv.worlds.composer.world import ComposerWorld
from worldenv.worlds.kinematics import kept_kinematics

TEACHER, CONTACT = "teacher.safetensors", "contact.safetensors"


class ComposerStages:
    """A teacher, pretrained on the pretraining suite; what contacts do to things; a student of one step on its own
    rollouts."""

    name, has_ranges = "composer", True

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self._layers: Layers | None = None

    def load(self, path: Path) -> ComposerWorld:
        suite = self.pipeline.suite
        return ComposerWorld.load(path, suite.robot, suite.views[0])

    def stages(self) -> list[tuple[Path, Callable[[Path], None]]]:
        models = self.pipeline.models
        return [
            (models / "teacher_base.safetensors", self.make_teacher_base),
            (models / TEACHER, self.make_teacher),
            (models / CONTACT, self.make_contact),
            (models / "composer.safetensors", self.make_student),
        ]

    def layers(self, chunk: int) -> Layers:
        """The layers of the recorded episodes, made anew in each session: some seconds."""
        if self._layers is None:
            self._layers = Layers.of(self.pipeline.clips(), chunk)
        return self._layers

    def make_teacher_base(self, path: Path) -> None:
        p = self.pipeline
        data, schedule = p.disturbed(), p.config.teacher_pretraining
        n, steps = len(data.frames), data.frames.shape[1] - 1
        camera = torch.from_numpy(p.suite.physics.camera.projection)
        clips = Clips(
            stored=MemoryFrames.padded(torch.from_numpy(data.frames)[:, :, None]),
            proprio=torch.from_numpy(data.proprio),
            actions=torch.from_numpy(data.actions),
            success=torch.from_numpy(data.success),
            length=torch.full((n,), steps),
            instructions=data.instructions,
            tasks=("pretraining",) * n,
            views=p.suite.views,
            camera=camera.expand(n, 1, 3, 4),
        )
        teacher = p.new(ComposerNetwork, ComposerConfig())
        draw = torch.Generator().manual_seed(p.seed)
        teacher.plate.data = clean_background(clips.sample_frames(draw, BACKGROUND_FRAMES)[:, 0])
        layers = Layers(clips.proprio, data.states, teacher.config.chunk, clips.frame_shape[1])
        loss = teacher_loss(teacher, clips, layers, p.suite.robot, schedule.batch, p.ranks)
        made = p.train(teacher, loss, schedule, "teacher_pretraining")
        p.write(save_model, path, teacher, "composer", made, levels=TEACHER_LEVELS)

    def make_teacher(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.teacher
        teacher = composer(p.models / "teacher_base.safetensors")
        layers = self.layers(teacher.config.chunk)
        loss = teacher_loss(teacher, p.clips(), layers, p.suite.robot, schedule.batch, p.ranks)
        made = p.train(teacher, loss, schedule, "teacher")
        p.write(save_model, path, teacher, "composer", made, levels=TEACHER_LEVELS)

    def make_contact(self, path: Path) -> None:
        teacher = composer(self.pipeline.models / TEACHER)
        self.fit_contact(path, self.pipeline.new(ContactNetwork, teacher.config.chunk), teacher.plate)

    def fit_contact(self, path: Path, network: ContactNetwork, plate: Tensor) -> None:
        """From the recorded chunks, and, with extra data, the same ones from beside."""
        p, schedule = self.pipeline, self.pipeline.config.contact
        scene = Scene(to_frames(plate.detach()[None, :, :, None])[0, 0], p.suite.robot.gripper)
        beside = p.config.beside if p.config.extra_data else 0
        contacts = record_contacts(p.clips(), self.layers(network.chunk), scene, beside, p.seed)
        made = p.train(network, contact_loss(network, contacts, schedule.batch, p.ranks), schedule, "contact")
        p.write(save_weights, path, network, {"kind": "contact", "made": made})

    def make_student(self, path: Path) -> None:
        p = self.pipeline
        teacher = composer(p.models / TEACHER)
        student = p.new(ComposerNetwork, replace(teacher.config, exact=True))
        student.load_state_dict(teacher.state_dict())
        self.fit_student(path, student, p.base().policy.encoder)

    def fit_student(self, path: Path, student: ComposerNetwork, encoder: VisionLanguageEncoder) -> None:
        """With the contact network that the stage before has made, which stays as it is."""
        p, schedule = self.pipeline, self.pipeline.config.student
        load_weights(p.models / CONTACT, student.contact)
        student.contact.requires_grad_(False)
        given = p.clips(), self.layers(student.config.chunk), p.suite.robot, schedule.batch, p.config.unroll
        loss = student_loss(student, encoder, *given, p.ranks)
        made, kept = p.train(student, loss, schedule, "student"), kept_kinematics(p.suite.robot)
        p.write(save_model, path, student, "composer", made, levels=STUDENT_LEVELS, **kept)


class CausalStages:
    """A teacher by diffusion forcing, distilled to a student of one or two steps; on the device of the run."""

    name, has_ranges = "causal", False

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def load(self, path: Path) -> CausalWorld:
        suite = self.pipeline.suite
        return CausalWorld.load(path, suite.robot, suite.views[0])

    def stages(self) -> list[tuple[Path, Callable[[Path], None]]]:
        models = self.pipeline.models
        return [(models / "causal_teacher.safetensors", self.make_teacher), (models / "causal.safetensors", self.make)]

    def make_teacher(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.causal_teacher
        clips, teacher = p.clips(), p.new(CausalNetwork, p.config.causal)
        draw = torch.Generator().manual_seed(p.seed)
        fit_tokenizer(teacher.tokenizer, clips.sample_frames(draw, TOKENIZER_FRAMES)[:, 0])
        teacher.tokenizer.requires_grad_(False)
        teacher.to(p.device)
        loss = causal_loss(teacher, p.suite.robot, clips, schedule.batch, p.config.causal_chunks, p.ranks)
        made = p.train(teacher, loss, schedule, "causal_teacher")
        p.write(save_model, path, teacher, "causal", made, levels=TEACHER_LEVELS)

    def make(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.causal_student
        teacher, student = (_causal(p.models / "causal_teacher.safetensors").to(p.device) for _ in range(2))
        student.tokenizer.requires_grad_(False)
        given = p.suite.robot, p.clips(), schedule.batch, p.config.causal_chunks, p.config.causal_levels
        loss = distillation_loss(student, teacher, *given, ranks=p.ranks)
        made = p.train(student, loss, schedule, "causal_student")
        kept = kept_kinematics(p.suite.robot)
        p.write(save_model, path, student, "causal", made, levels=p.config.causal_levels, **kept)


def composer(path: Path) -> ComposerNetwork:
    """The network in a file of the kind "composer"."""
    return load_model(path, "composer", ComposerNetwork, ComposerConfig)[0]


def _causal(path: Path) -> CausalNetwork:
    return load_model(path, "causal", CausalNetwork, CausalConfig)[0]
