"""The stages that make a world model: one class for each kind, used by `Pipeline`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.errors import UserError
from worldenv.files import remove_temporary
from worldenv.interfaces.true_things import Shiftable
from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.ops.unpatchify import to_frames
from worldenv.records.checkpoint import load_weights, save_weights
from worldenv.records.kept import Kept
from worldenv.records.model_files import load_model, save_model
from worldenv.robot.fitted import FittedKinematics
from worldenv.suites.tabletop.things import TabletopThings
from worldenv.training.config import TOKENIZER_FRAMES
from worldenv.training.contacts import record_contacts
from worldenv.training.layers import Layers, made_of, with_wanted_opening
from worldenv.training.train_causal import causal_loss, distillation_loss, fit_tokenizer
from worldenv.training.train_composer import BACKGROUND_FRAMES, clean_background, student_loss, teacher_loss
from worldenv.training.train_contact import axis_across, contact_loss
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.contact import ContactNetwork, Scene
from worldenv.worlds.composer.layer import APERTURE
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork
from worldenv.worlds.composer.sampler import STUDENT_LEVELS, TEACHER_LEVELS
from worldenv.worlds.composer.world import ComposerWorld
from worldenv.worlds.kinematics import kept_kinematics

BASE, TEACHER, CONTACT = "teacher_base.safetensors", "teacher.safetensors", "contact.safetensors"


class ComposerStages:
    """The stages of the composer: teacher, contact network, student.

    The teacher is pretrained if the pretraining episodes have true states. The student takes one denoising step and is
    trained on its own rollouts. All learn from episodes whose recorded actions are those that were carried out, because
    the true things are found by carrying out these actions again.
    """

    name, has_ranges = "composer", True

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self._clips: Clips | None = None
        self._layers: Layers | None = None

    def check(self) -> None:
        """Raise UserError for settings with which training would fail only later."""
        p = self.pipeline
        steps = p.config.unroll * ComposerConfig.chunk
        if steps > p.suite.horizon:
            raise UserError(
                f"--scratch.unroll is {p.config.unroll} chunks, which have {steps} actions; an episode of the suite "
                f"has only {p.suite.horizon}"
            )
        if not (p.lessons.records_what_is_done or p.config.extra_data):
            raise UserError(
                "--scratch.no-extra-data leaves only demonstrations, and the actions in those of this suite are not "
                "the ones that were carried out, which the composer needs: remove the option, or give --world causal"
            )

    def load(self, path: Path) -> ComposerWorld:
        suite = self.pipeline.suite
        return ComposerWorld.load(path, suite.robot, suite.views[0])

    def stages(self) -> list[tuple[Path, Callable[[Path], None]]]:
        models = self.pipeline.models
        pretraining = [(models / BASE, self.make_teacher_base)] if self.pipeline.lessons.keeps_states else []
        return [
            *pretraining,
            (models / TEACHER, self.make_teacher),
            (models / CONTACT, self.make_contact),
            (models / "composer.safetensors", self.make_student),
        ]

    def clips(self) -> Clips:
        """The recorded episodes, with the opening of the fingers that the world model will imagine.

        Raises UserError if all are shorter than what the student imagines in a row.
        """
        if self._clips is None:
            recorded, unroll = self.pipeline.carried_out(), self.pipeline.config.unroll
            steps, longest = unroll * ComposerConfig.chunk, int(recorded.length.max())
            if steps > longest:
                raise UserError(
                    f"--scratch.unroll is {unroll} chunks, which have {steps} actions; the longest recorded episode "
                    f"has only {longest}: give a smaller --scratch.unroll and another --run"
                )
            self._clips = with_wanted_opening(recorded, self.pipeline.robot)
        return self._clips

    def layers(self, chunk: int) -> Layers:
        """The layers of the recorded episodes. What is drawn for them is kept in `pipeline.labels`."""
        if self._layers is None:
            p = self.pipeline
            recorded, proprio, clear_m = p.carried_out(), self.clips().proprio, p.suite.robot.clear_m
            kept = Kept(p.labels, made_of(recorded, chunk, clear_m), p.ranks.first)
            if p.ranks.first:
                remove_temporary(kept.folder)
            with p.ranks.after_first():
                things = p.lessons.true_things(recorded, kept)
                self._layers = Layers(proprio, things, chunk, clear_m, kept)
        return self._layers

    def make_teacher_base(self, path: Path) -> None:
        p = self.pipeline
        self.clips()  # refused here, before anything of the world model is trained
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
        teacher, things = self._new(clips), TabletopThings(data.states, clips.frame_shape[1])
        layers = Layers(clips.proprio, things, teacher.config.chunk, p.suite.robot.clear_m)
        loss = teacher_loss(teacher, clips, layers, p.robot, schedule.batch, p.ranks)
        made = p.train(teacher, loss, schedule, "teacher_pretraining")
        p.write(save_model, path, teacher, "composer", made, levels=TEACHER_LEVELS)

    def make_teacher(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.teacher
        teacher = composer(p.models / BASE) if p.lessons.keeps_states else self._new(self.clips())
        layers = self.layers(teacher.config.chunk)
        loss = teacher_loss(teacher, self.clips(), layers, p.robot, schedule.batch, p.ranks)
        made = p.train(teacher, loss, schedule, "teacher")
        p.write(save_model, path, teacher, "composer", made, levels=TEACHER_LEVELS)

    def _new(self, clips: Clips) -> ComposerNetwork:
        """An untrained network that has the picture of the empty scene of these clips."""
        leads = isinstance(self.pipeline.robot.kinematics, FittedKinematics)
        config = ComposerConfig(stops=leads, held_open=leads, samples_grasps=leads)
        teacher = self.pipeline.new(ComposerNetwork, config)
        draw = torch.Generator().manual_seed(self.pipeline.seed)
        teacher.plate.data = clean_background(clips.sample_frames(draw, BACKGROUND_FRAMES)[:, 0])
        return teacher

    def make_contact(self, path: Path) -> None:
        teacher = composer(self.pipeline.models / TEACHER)
        config = teacher.config
        network = self.pipeline.new(ContactNetwork, config.chunk, config.stops, config.held_open)
        self.fit_contact(path, network, teacher.plate)

    def fit_contact(self, path: Path, network: ContactNetwork, plate: Tensor) -> None:
        """Train on the recorded chunks and, with extra data and a `Shiftable` simulator, on tries after an offset."""
        p, schedule = self.pipeline, self.pipeline.config.contact
        clips, layers = self.clips(), self.layers(network.chunk)
        scene = Scene(to_frames(plate.detach()[None, :, :, None])[0, 0], p.robot)
        beside = p.config.beside if p.config.extra_data else 0
        if beside and not isinstance(layers.things, Shiftable):
            beside = 0
            if p.ranks.first:
                print("contact: this simulator can try no chunk after an offset: recorded ones only", file=sys.stderr)
        with p.ranks.after_first():
            opening = p.carried_out().proprio[..., APERTURE]
            contacts = record_contacts(clips, layers, scene, beside, p.seed, opening)
        across = axis_across(clips.still_camera()[:, 0])
        loss = contact_loss(network, contacts, schedule.batch, p.ranks, across)
        made = p.train(network, loss, schedule, "contact")
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
        given = self.clips(), self.layers(student.config.chunk), p.robot, schedule.batch, p.config.unroll
        loss = student_loss(student, encoder, *given, p.ranks)
        made, kept = p.train(student, loss, schedule, "student"), kept_kinematics(p.robot)
        p.write(save_model, path, student, "composer", made, levels=STUDENT_LEVELS, **kept)


class CausalStages:
    """A teacher by diffusion forcing, distilled to a student of one or two steps; on the device of the run."""

    name, has_ranges = "causal", False

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def check(self) -> None:
        """Raise UserError for settings with which training would fail only later."""
        config, horizon = self.pipeline.config, self.pipeline.suite.horizon
        if (steps := config.causal_chunks * config.causal.chunk) > horizon:
            raise UserError(
                f"--scratch.causal-chunks is {config.causal_chunks} chunks, which have {steps} actions; an episode of "
                f"the suite has only {horizon}"
            )

    def load(self, path: Path) -> CausalWorld:
        suite = self.pipeline.suite
        return CausalWorld.load(path, suite.robot, suite.views[0])

    def stages(self) -> list[tuple[Path, Callable[[Path], None]]]:
        models = self.pipeline.models
        return [(models / "causal_teacher.safetensors", self.make_teacher), (models / "causal.safetensors", self.make)]

    def make_teacher(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.causal_teacher
        clips, teacher = self._clips(), p.new(CausalNetwork, p.config.causal)
        draw = torch.Generator().manual_seed(p.seed)
        fit_tokenizer(teacher.tokenizer, clips.sample_frames(draw, TOKENIZER_FRAMES)[:, 0])
        teacher.tokenizer.requires_grad_(False)
        teacher.to(p.device)
        loss = causal_loss(teacher, p.robot, clips, schedule.batch, p.config.causal_chunks, p.ranks)
        with _tensor_float32(p.device):
            made = p.train(teacher, loss, schedule, "causal_teacher")
        p.write(save_model, path, teacher, "causal", made, levels=TEACHER_LEVELS)

    def make(self, path: Path) -> None:
        p, schedule = self.pipeline, self.pipeline.config.causal_student
        teacher, student = (_causal(p.models / "causal_teacher.safetensors").to(p.device) for _ in range(2))
        student.tokenizer.requires_grad_(False)
        given = p.robot, self._clips(), schedule.batch, p.config.causal_chunks, p.config.causal_levels
        loss = distillation_loss(student, teacher, *given, ranks=p.ranks)
        with _tensor_float32(p.device):
            made = p.train(student, loss, schedule, "causal_student")
        kept = kept_kinematics(p.robot)
        p.write(save_model, path, student, "causal", made, levels=p.config.causal_levels, **kept)

    def _clips(self) -> Clips:
        """In memory where a GPU would wait for the disk."""
        clips = self.pipeline.clips()
        return clips if self.pipeline.device.type == "cpu" else clips.in_memory()


@contextmanager
def _tensor_float32(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices in TF32, on a GPU that has it: training bears the rounding."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def composer(path: Path) -> ComposerNetwork:
    """The network in a file of the kind "composer"."""
    return load_model(path, "composer", ComposerNetwork, ComposerConfig)[0]


def _causal(path: Path) -> CausalNetwork:
    return load_model(path, "causal", CausalNetwork, CausalConfig)[0]
