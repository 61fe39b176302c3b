"""`worldenv-distill`: trains a few-step student of a released world model on recorded episodes."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from worldenv.assemble import WORLDS, check_names, named, outline
from worldenv.config import released
from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.fields import ADDED, Within, check_fields, with_added
from worldenv.records.run_folder import FolderTaken, RunFolder
from worldenv.training.distillation import Method
from worldenv.training.fit import Schedule, fit
from worldenv.training.students import student_of

DISTILL = "distill"  # what config.json names the settings
STAGE, WORLD = "student", "world"  # names in the run folder: of the stage, and of the student's own folder


@dataclass(frozen=True)
class Distillation:
    """Train a student of a released world model on recorded episodes: the options of worldenv-distill."""

    world: str  # the teacher: svd:FOLDER, rlinf-wan:FOLDER or causal-latents:FOLDER
    data: tuple[Path, ...]  # folders or files of episodes
    run: Path  # new folder for the result; the student is in RUN/world
    # causal-latents:FOLDER: the student of a teacher svd:FOLDER; empty: a copy of the teacher learns
    student: str = field(default="", metadata=ADDED)
    suite: str = "tabletop"  # as in worldenv-train; it has the robot and the view of the recordings
    denoising_steps: int = 1  # of the student, fewer than --teacher-steps
    teacher_steps: int = 20  # denoising steps of the teacher; the student learns to reach their result
    # trajectory: learn the result of all the teacher's steps; consistency: learn equal predictions at all noise levels
    method: Method = field(default="trajectory", metadata=ADDED)
    resume: bool = False  # continue the interrupted training in `run`
    seed: int = 0  # of the batches and their noise
    device: Literal["cpu", "cuda"] = "cpu"
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=4, learning_rate=1e-5))

    def __post_init__(self) -> None:
        count = Within(1, 1000)
        check_fields(self, denoising_steps=count, teacher_steps=count, seed=Within(0, 2**32 - 1))
        kind = released(self.world)
        if kind is None or f"{kind[0]}:FOLDER" not in WORLDS or not kind[1]:
            kinds = " or ".join(name for name in WORLDS if name.endswith(":FOLDER"))
            raise UserError(f"--world is {self.world[:100]!r}; it should be the teacher: {kinds}")
        learner, folder = released(self.student) or ("", "")
        if self.student and not (folder and (learner, kind[0]) == ("causal-latents", "svd")):
            raise UserError(
                f"--student is {self.student[:100]!r}, and --world {self.world[:100]!r}; they should be "
                "causal-latents:FOLDER and svd:FOLDER; leave --student out for a student of the teacher's own kind"
            )
        if self.denoising_steps >= self.teacher_steps:
            raise UserError(
                f"--denoising-steps is {self.denoising_steps}, and --teacher-steps {self.teacher_steps}: a student "
                "should have fewer steps than its teacher"
            )
        if not self.data:
            raise UserError("data names no recorded episodes; give at least one folder")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is cuda, but torch finds no CUDA device; take --device cpu")


def train_student(config: Distillation) -> dict[str, Any]:
    """Train the student and write it to `config.run`/world, in the layout of the teacher or of `config.student`.

    Returns the last figures. The folders `config.world` and `config.student` never change. With `config.resume`, an
    interrupted training continues, if its other settings are the same, and a finished one returns at once. Raises
    UserError for settings, models or recordings that do not fit.
    """
    kept = {DISTILL: _document(config)}
    run = Path(os.path.realpath(config.run))
    if any(run.is_relative_to(_folder(name)) for name in (config.world, config.student) if name):  # one will be copied
        raise UserError(f"--run {config.run} lies in the folder of the teacher or student; choose another --run")
    if config.resume:  # this check and the next two come before minutes of loading
        saved = RunFolder(config.run).config.get(DISTILL)
        if not isinstance(saved, dict) or with_added(Distillation, saved) != kept[DISTILL]:
            raise UserError(
                f"{config.run} is not a run of worldenv-distill, or has other settings: choose another --run"
            )
    elif os.path.lexists(config.run):
        raise FolderTaken(f"{config.run} is there already; choose another --run, or continue it with --resume")
    clips = Clips.open(config.data)
    teacher, begun = _world(config, config.world), _world(config, config.student) if config.student else None
    counts, schedule = (config.denoising_steps, config.teacher_steps), config.schedule
    student = student_of(teacher, clips, schedule.batch, *counts, config.method, begun)
    with RunFolder.resume(config.run) if config.resume else RunFolder.create(config.run, kept) as folder:
        seconds = fit(student.learns, student.loss, schedule, STAGE, folder, config.seed)
        last = {k: v for line in folder.metrics(STAGE)[-1:] for k, v in line.items() if isinstance(v, float)}
        if not os.path.lexists(folder.path / WORLD):
            student.write(folder.path / WORLD)
        made = {"seed": config.seed, "steps": schedule.steps, "training_s": seconds, "metrics": last}
        name = f"{released(config.student or config.world)[0]}:{folder.path / WORLD}"
        return {"world": name, "denoising_steps": config.denoising_steps, "episodes": len(clips), **made}


def _world(config: Distillation, name: str) -> Any:
    check_names(config.suite, "small", name, "small")
    world = named("world", name, WORLDS)(Path(), outline(config.suite))
    world.network.to(config.device)
    return world


def _document(config: Distillation) -> dict[str, Any]:
    values = asdict(config) | {"run": None, "resume": False, "device": None}
    values["data"] = [os.path.realpath(path) for path in config.data]
    names = {role: getattr(config, role) for role in ("world", "student")}
    return values | {role: name and f"{released(name)[0]}:{_folder(name)}" for role, name in names.items()}


def _folder(name: str) -> str:
    """The folder of a released model. A link to itself is no error here; it is one when the folder is opened."""
    return os.path.realpath(Path(released(name)[1]).expanduser())
