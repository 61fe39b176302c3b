"""All models from nothing: pretraining, demonstrations, fine-tuning, exploration, simulator, student, reflector.

Every stage writes its result once and is skipped when the result is there, so an interrupted run continues.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.truth import act_in_true, starts_of
from worldenv.nn.instruction import tokenize
from worldenv.policy.small import PolicyConfig
from worldenv.records.checkpoint import atomic_write_text, load_weights, save_weights
from worldenv.records.model_card import write_card
from worldenv.records.model_files import RANGES, Models, load_model, save_model
from worldenv.records.progress import Progress
from worldenv.records.run_folder import RunFolder
from worldenv.reflector.small import Reflector, ReflectorConfig
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.record import VIEW
from worldenv.suites.tabletop.demonstrate import Disturbed, demonstrate
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training.act_again import act_again
from worldenv.training.adapt import adaptation_loss
from worldenv.training.finetune import imitation_loss
from worldenv.training.fit import Schedule, fit
from worldenv.training.imagined import as_imagined
from worldenv.training.pretrain import Base, base_loss, disturbed_episodes, sample_base_batch
from worldenv.training.ranges import EPISODES, measure_ranges
from worldenv.training.train_reflector import join, read_features, reward_loss
from worldenv.training.train_simulator import PLATE_FRAMES, clean_plate, student_loss, teacher_loss
from worldenv.worlds.composer.network import Simulator, SimulatorConfig
from worldenv.worlds.composer.sampler import STUDENT_LEVELS, TEACHER_LEVELS
from worldenv.worlds.composer.world import World

EXPLORATION_START = 1_000_000  # exploration uses other training starts than the demonstrations
RANGES_START = 3_000_000
EXTRA_DATA = ("exploration", "again")
WRITE_EVERY = 100  # episodes that are made at a time; a part of the data set


@dataclass(frozen=True)
class ScratchConfig:
    """How the weights of the default are made (`--from-scratch`): one entry a stage, in order."""

    pretraining_episodes: int = 4000
    action_episodes: int = 75  # of them have actions
    base: Schedule = Schedule(steps=4500, batch=64, learning_rate=1.5e-3)
    demonstrations: int = 5  # per task
    finetune: Schedule = Schedule(steps=300, batch=64, learning_rate=2e-4)
    adapt: Schedule = Schedule(steps=1600, batch=64, learning_rate=5e-4)  # to imagined frames
    exploration: int = 150  # episodes per task
    perturb: float = 2.0  # largest scale of the Laplace noise of exploration, 1 = the policy's own
    again: int = 150  # episodes per task that act out explored successes again, a little beside
    again_noise: float = 0.15  # largest scale of their Laplace noise, in units of the action
    teacher_pretraining: Schedule = Schedule(steps=600, batch=32, learning_rate=1.2e-3, weight_decay=1e-3)
    teacher: Schedule = Schedule(steps=5000, batch=16, learning_rate=1e-3, weight_decay=1e-3)
    student: Schedule = Schedule(steps=1800, batch=8, learning_rate=4e-4, weight_decay=1e-3)
    unroll: int = 5  # chunks that the student imagines in a row while it learns
    head: Schedule = Schedule(steps=2000, batch=64, learning_rate=1e-3)
    imagined_share: float = 0.5  # of the episodes are also shown to policy and reflector as the simulator imagines them
    extra_data: bool = True  # False: simulator and reflector see the demonstrations only (the paper's ablation)

    def __post_init__(self) -> None:
        if not 1 <= self.action_episodes <= self.pretraining_episodes:
            raise UserError(
                f"action_episodes is {self.action_episodes}; it must lie between 1 and pretraining_episodes, "
                f"{self.pretraining_episodes}"
            )
        if not 0 < self.imagined_share <= 1:
            raise UserError(f"imagined_share is {self.imagined_share}; it must lie between 0 (not included) and 1")
        if min(self.demonstrations, self.exploration, self.again, self.unroll) < 1:
            raise UserError(f"demonstrations, exploration, again and unroll must be positive: {self}")

    def describe(self) -> str:
        """For a model card: what differs from the default."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        changed = [f"{name}={value}" for name, value in pairs if value != getattr(ScratchConfig, name)]
        return ", ".join(changed) or "the default"


class Pipeline:
    """`run()` leaves policy, simulator and reflector in <folder>/models and the recorded episodes in <folder>/data."""

    def __init__(self, folder: RunFolder, config: ScratchConfig, seed: int):
        self.folder, self.config, self.seed = folder, config, seed
        self.models, self.data = folder.path / "models", folder.path / "data"
        self.camera = tabletop_camera(SimulatorConfig().image_size)
        self.projection = torch.from_numpy(self.camera.projection)
        self._disturbed: Disturbed | None = None
        self._replays: tuple[Clips, Clips] | None = None

    def run(self) -> Path:
        """Make whatever is missing, in order; returns the folder of the models."""
        self.models.mkdir(exist_ok=True)
        self.data.mkdir(exist_ok=True)
        stages: list[tuple[Path, Callable[[Path], None]]] = [
            (self.models / "base.safetensors", self.make_base),
            (self.data / "demonstrations", self.record_demonstrations),
            (self.models / "finetuned.safetensors", self.make_finetuned),
            (self.data / "exploration", self.record_exploration),
            (self.data / "again", self.record_again),
            (self.models / "teacher_base.safetensors", self.make_teacher_base),
            (self.models / "teacher.safetensors", self.make_teacher),
            (self.models / "simulator.safetensors", self.make_student),
            (self.models / "policy.safetensors", self.make_policy),
            (self.models / "reflector.safetensors", self.make_reflector),
            (self.models / RANGES, self.make_ranges),
        ]
        for path, make in stages:
            if path.name in EXTRA_DATA and not self.config.extra_data:
                continue
            card = path.with_suffix(".md")
            if not path.exists():
                card.unlink(missing_ok=True)
                make(path)
            if path.suffix == ".safetensors" and not card.exists():
                write_card(path)
        return self.models

    def disturbed(self) -> Disturbed:
        """The pretraining episodes, made anew in each session: deterministic, and faster than reading them."""
        if self._disturbed is None:
            self._disturbed = disturbed_episodes(self.config.pretraining_episodes, self.seed)
        return self._disturbed

    def clips(self) -> Clips:
        """Demonstrations and, with extra data, exploration and what was acted again; the frames stay on disk."""
        names = ("demonstrations", *(EXTRA_DATA if self.config.extra_data else ()))
        return Clips.open(self.data / name for name in names)

    def train(
        self,
        module: nn.Module,
        loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
        schedule: Schedule,
        stage: str,
    ) -> dict:
        """Fit, and return what a model card says: seed, steps, batch, seconds and last figures."""
        seconds = fit(module, loss, schedule, stage, self.folder, self.seed)
        last = self.folder.metrics(stage)[-1:]
        metrics = {k: v for line in last for k, v in line.items() if isinstance(v, float)}
        return {
            "command": f"worldenv-train tabletop --from-scratch --seed {self.seed}, stage {stage}",
            "configuration": self.config.describe(),
            "seed": self.seed,
            "steps": schedule.steps,
            "batch": schedule.batch,
            "training_s": seconds,
            "metrics": {k: v for k, v in metrics.items() if k not in ("time_s", "learning_rate")},
        }

    def make_base(self, path: Path) -> None:
        data = self.disturbed()
        base, tokens = self._new(Base, PolicyConfig()), tokenize(data.instructions)
        schedule = self.config.base

        def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            return base_loss(
                base, sample_base_batch(data, tokens, generator, schedule.batch, self.config.action_episodes)
            )

        made = self.train(base, loss, schedule, "base")
        weights = {name: tensor.half() for name, tensor in base.state_dict().items()}
        save_weights(path, weights, {"kind": "base", "made": made})

    def record_demonstrations(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with TrajectoryWriter(partial) as writer:
            for task in TASKS:
                for trajectory in demonstrate(
                    [task] * self.config.demonstrations, range(self.config.demonstrations), "train"
                ):
                    writer.write(trajectory)
        partial.rename(path)

    def make_finetuned(self, path: Path) -> None:
        policy, schedule = self._base().policy, self.config.finetune
        loss = imitation_loss(policy, self.demonstrations(), schedule.batch)
        save_model(path, policy, self.train(policy, loss, schedule, "finetune"))

    def make_policy(self, path: Path) -> None:
        """The fine-tuned policy, once it reads imagined frames as it reads true ones."""
        schedule = self.config.adapt
        policy, _ = load_model(self.models / "finetuned.safetensors", "policy")
        loss = adaptation_loss(policy, *self.replays(), schedule.batch)
        save_model(path, policy, self.train(policy, loss, schedule, "adapt"))

    def demonstrations(self) -> Clips:
        return Clips.open(self.data / "demonstrations").in_memory()

    def record_exploration(self, path: Path) -> None:
        policy, _ = load_model(self.models / "finetuned.safetensors", "policy")

        def explore(numbers: range) -> list[Trajectory]:
            tasks = [TASKS[i % len(TASKS)] for i in numbers]
            starts = [EXPLORATION_START + i for i in numbers]
            seed = self.seed + numbers.start
            perturb = self.config.perturb * torch.rand(len(tasks), generator=torch.Generator().manual_seed(seed))
            return act_in_true(policy, tasks, starts, "train", perturb, seed)

        _record(path, self.config.exploration * len(TASKS), explore)

    def record_again(self, path: Path) -> None:
        """Explored successes in turn (all explored episodes, where none succeeded)."""
        clips, reader = (read(self.data / "exploration") for read in (Clips.open, TrajectoryReader))
        explored = clips.success.any(1).nonzero()[:, 0].tolist() or range(len(clips))

        def again(numbers: range) -> list[Trajectory]:
            seed = self.seed + numbers.start
            scale = self.config.again_noise * np.random.default_rng(seed).random(len(numbers))
            return act_again([reader[explored[i % len(explored)]] for i in numbers], scale, seed)

        _record(path, self.config.again * len(TASKS), again)

    def make_teacher_base(self, path: Path) -> None:
        data, schedule = self.disturbed(), self.config.teacher_pretraining
        steps = data.frames.shape[1] - 1
        clips = Clips(
            MemoryFrames.padded(torch.from_numpy(data.frames)[:, :, None]),
            torch.from_numpy(data.proprio),
            torch.zeros(len(data.frames), steps, 7),
            torch.from_numpy(data.success),
            torch.full((len(data.frames),), steps),
            data.instructions,
            ("pretraining",) * len(data.frames),
            (VIEW,),
        )
        teacher = self._new(Simulator, SimulatorConfig())
        draw = torch.Generator().manual_seed(self.seed)
        teacher.plate.data = clean_plate(clips.sample_frames(draw, PLATE_FRAMES)[:, 0])
        loss = teacher_loss(teacher, clips, self.projection, schedule.batch)
        save_model(path, teacher, self.train(teacher, loss, schedule, "teacher_pretraining"), levels=TEACHER_LEVELS)

    def make_teacher(self, path: Path) -> None:
        schedule = self.config.teacher
        teacher, _ = load_model(self.models / "teacher_base.safetensors", "simulator")
        loss = teacher_loss(teacher, self.clips(), self.projection, schedule.batch)
        save_model(path, teacher, self.train(teacher, loss, schedule, "teacher"), levels=TEACHER_LEVELS)

    def make_student(self, path: Path) -> None:
        schedule = self.config.student
        teacher, _ = load_model(self.models / "teacher.safetensors", "simulator")
        student = self._new(Simulator, replace(teacher.config, exact=True))
        student.load_state_dict(teacher.state_dict())
        encoder = self._base().policy.encoder
        loss = student_loss(student, encoder, self.clips(), self.projection, schedule.batch, self.config.unroll)
        save_model(path, student, self.train(student, loss, schedule, "student"), levels=STUDENT_LEVELS)

    def make_reflector(self, path: Path) -> None:
        schedule, base = self.config.head, self._base()
        reflector = self._new(Reflector, ReflectorConfig())
        reflector.encoder.load_state_dict(base.policy.encoder.state_dict())
        reflector.done.load_state_dict(base.done.state_dict())
        sets = [self.clips(), self.replays()[1]]
        with Progress(sum(map(len, sets)), "reading frames for the reflector") as progress:
            features = join([read_features(reflector, part, self.seed, progress.advance) for part in sets])
        loss = reward_loss(reflector, features, schedule.batch)
        save_model(path, reflector, self.train(reflector, loss, schedule, "reflector"))

    def make_ranges(self, path: Path) -> None:
        models = Models.load(self.models)
        world = World(models.simulator, self.camera, models.levels)
        engine = Engine(models.policy, world, models.reflector, Kinematics(), EngineConfig())
        tasks, numbers = [TASKS[i % len(TASKS)] for i in range(EPISODES)], range(RANGES_START, RANGES_START + EPISODES)
        ranges = measure_ranges(models, engine, starts_of(tasks, list(numbers), "train"), self.seed)
        atomic_write_text(path, json.dumps(ranges, indent=1) + "\n")

    def replays(self) -> tuple[Clips, Clips]:
        """Some of the recorded episodes, as they were and as the simulator imagines them along the same poses."""
        if self._replays is None:
            simulator, about = load_model(self.models / "simulator.safetensors", "simulator")
            world = World(simulator, self.camera, about["levels"])
            clips = self.clips()
            order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(self.seed))
            some = clips.pick(order[: max(1, round(self.config.imagined_share * len(clips)))]).in_memory()
            self._replays = some, as_imagined(world, some, self.seed)
        return self._replays

    def _base(self) -> Base:
        base = Base(PolicyConfig())
        load_weights(self.models / "base.safetensors", base)
        return base.to(memory_format=torch.channels_last)

    def _new(self, network: type[nn.Module], config: object) -> nn.Module:
        torch.manual_seed(self.seed)
        return network(config).to(memory_format=torch.channels_last)


def _record(path: Path, total: int, make: Callable[[range], list[Trajectory]]) -> None:
    """Write the episodes that `make` returns for the numbers 0 .. total - 1, some at a time; a killed one goes on."""
    partial = path.with_suffix(".partial")
    with (
        TrajectoryWriter(partial, WRITE_EVERY, append=partial.exists()) as writer,
        Progress(total, path.stem, done=len(writer)) as progress,
    ):
        while (done := len(writer)) < total:
            first = done // WRITE_EVERY * WRITE_EVERY  # the random numbers are those of a whole part
            numbers = range(first, min(first + WRITE_EVERY, total))
            for trajectory in make(numbers)[done - first :]:
                writer.write(trajectory)
            progress.advance(numbers.stop - done)
    partial.rename(path)
