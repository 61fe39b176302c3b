"""All models of a suite from nothing: base, demonstrations, policy, exploration, world model, reflector.

Every stage writes its result once and is skipped when the result is there, so an interrupted run continues. Several
ranks go through the stages together; rank 0 writes.
"""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.data.disturbed import Disturbed
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader, TrajectoryWriter
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.measure import in_turn
from worldenv.evaluation.truth import act_in_true
from worldenv.files import cannot_be_written
from worldenv.interfaces.world import WorldModel
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.records.model_card import write_card
from worldenv.records.model_files import RANGES, save_model, save_ranges
from worldenv.records.progress import Progress
from worldenv.records.run_folder import RunFolder
from worldenv.records.stage_times import timed
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.robot import Robot
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.training.act_again import act_again
from worldenv.training.adapt import adaptation_loss
from worldenv.training.config import ScratchConfig, command_for
from worldenv.training.finetune import Loss, imitation_loss, with_pretraining
from worldenv.training.fit import Schedule, fit
from worldenv.training.given import BASE, FINETUNED, POLICY, take
from worldenv.training.imagined import as_imagined
from worldenv.training.lessons import LESSONS
from worldenv.training.own_kinematics import fit_own
from worldenv.training.pretrain import Base, pretraining_loss
from worldenv.training.ranges import EPISODES, measure_ranges
from worldenv.training.train_reflector import join, picture_loss, read_features, reward_loss
from worldenv.training.world_stages import CausalStages, ComposerStages
from worldenv.worlds.kinematics import kept_kinematics, with_kept

EXPLORATION_START = 1_000_000  # exploration uses other training starts than the demonstrations
RANGES_START = 3_000_000
EXTRA_DATA = ("exploration", "again")
KINEMATICS = "kinematics.safetensors"
# Where the reflector stops: stopping a little late costs nothing, a little early costs the episode. Found on 500
# validation starts (benchmarks/LOG.md).
STOP_ABOVE = 0.78
WORLDS = {"composer": ComposerStages, "causal": CausalStages}
Stage = tuple[Path, Callable[[Path], None]]  # what the stage leaves behind, and what makes it


class Pipeline:
    """`run()` leaves the models in <folder>/models and the recorded episodes in <folder>/data."""

    def __init__(
        self,
        folder: RunFolder,
        config: ScratchConfig,
        seed: int,
        world: str,
        device: str = "cpu",
        suite: str = "tabletop",
        ranks: Ranks = ALONE,
        given: Path | None = None,  # a folder; a base or a fine-tuned policy in it is taken, and not made
    ):
        self.folder, self.config, self.seed, self.device = folder, config, seed, torch.device(device)
        self.given = given
        self.models, self.data, self.ranks = folder.path / "models", folder.path / "data", ranks
        self.labels = self.data / "labels"  # what the simulator is asked for about recorded episodes
        self.lessons = LESSONS[suite]()
        self.suite = self.lessons.suite
        self.world = WORLDS[world](self)
        self.world.check()
        self.command = f"{command_for(suite)} --from-scratch --world {world} --seed {seed}"
        self.command += "" if given is None else f" --models {given}"
        self.episodes = {name: getattr(config, name) * len(self.suite.tasks) for name in EXTRA_DATA}
        self._disturbed: Disturbed | None = None
        self._replays: tuple[Clips, Clips] | None = None

    def run(self) -> Path:
        """Make whatever is missing, in order; returns the folder of the models.

        Raises UserError naming what cannot be written, as on a full disk; there the run can be resumed. Also if the
        given folder has no model to take, or one that does not fit this run.
        """
        if self.given is not None and self.ranks.first:
            try:
                take(self.given, self.models, self.policy_config())
            except OSError as error:
                raise cannot_be_written(self.models, error) from error
        for path, make in self.stages():
            if path.name in EXTRA_DATA and not self.config.extra_data:
                continue
            try:
                if self.ranks.first:
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._make(path, make)
            except OSError as error:
                raise cannot_be_written(path, error) from error
            except (CheckpointError, TrajectoryFormatError) as error:
                raise self._explained(error) from error
        return self.models

    def _explained(self, error: UserError) -> UserError:
        """The error with what to delete, where it names something that a stage of this run makes."""
        made = [path for path, _ in self.stages()]
        made += [path.with_suffix(".partial") for path in made] + list(self.folder.checkpoints.glob("*.safetensors"))
        named = [path for path in made if str(path) in str(error)]
        if not named:
            return error
        return type(error)(
            f"{error}; to have it made again, delete {max(named, key=lambda path: len(str(path)))}, then resume"
        )

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        card, first = path.with_suffix(".md"), self.ranks.first
        if not self.ranks.from_first(path.exists()):
            stage = str(path.relative_to(self.folder.path).with_suffix(""))
            if first:
                card.unlink(missing_ok=True)
            with timed(self.folder.path, stage) if first else nullcontext():
                if first or path.name != RANGES:
                    make(path)
        if first and path.suffix == ".safetensors" and not card.exists():
            write_card(path)
        self.ranks.wait_for(path)

    def stages(self) -> list[Stage]:
        """The stages in order; the world model's own stand where the data is there and nothing needs it yet."""
        return [
            (self.models / BASE, self.make_base),
            (self.data / "demonstrations", self.record_demonstrations),
            (self.models / FINETUNED, self.make_finetuned),
            (self.data / "exploration", self.record_exploration),
            (self.data / "again", self.record_again),
            *([(self.models / KINEMATICS, self.make_kinematics)] if self.fits_kinematics else []),
            *self.world.stages(),
            (self.models / POLICY, self.make_policy),
            (self.models / "reflector.safetensors", self.make_reflector),
            *([(self.models / RANGES, self.make_ranges)] if self.world.has_ranges else []),
        ]

    def disturbed(self) -> Disturbed:
        """The pretraining episodes and stills. Unless the lessons keep them, each session makes them anew.

        They are deterministic.
        """
        if self._disturbed is None:
            counts = self.config.pretraining_episodes, self.config.stills
            with self.ranks.after_first() if self.lessons.keeps else nullcontext():
                self._disturbed = self.lessons.disturbed(*counts, self.seed, self.data / "pretraining")
        return self._disturbed

    def clips(self) -> Clips:
        """The demonstrations and, with extra data, `exploration` and `again`; the frames stay on disk."""
        return self.recorded("demonstrations", *(EXTRA_DATA if self.config.extra_data else ()))

    def carried_out(self) -> Clips:
        """The episodes whose recorded actions are those that were carried out; without extra data, all episodes."""
        has_all = self.lessons.records_what_is_done or not self.config.extra_data
        return self.clips() if has_all else self.recorded(*EXTRA_DATA)

    @property
    def fits_kinematics(self) -> bool:
        """Whether the suite's kinematics are a fit, and the run's episodes record the actions that were carried out."""
        are_fit = isinstance(self.suite.robot.kinematics, FittedKinematics)
        return are_fit and (self.config.extra_data or self.lessons.records_what_is_done)

    @cached_property
    def robot(self) -> Robot:
        """The suite's robot, with the kinematics that were fitted to this run's episodes, if any were."""
        path, robot = self.models / KINEMATICS, self.suite.robot
        return with_kept(path, load_weights(path)[1], robot) if self.fits_kinematics else robot

    def recorded(self, *names: str) -> Clips:
        """Data sets of this run. Raises TrajectoryFormatError if episodes are missing."""
        clips = Clips.open(self.data / name for name in names)
        folders = [demo.path.parent for demo in clips.stored.demos]
        for path in (self.data / name for name in names if name in self.episodes):
            if (found := folders.count(path)) != (expected := self.episodes[path.name]):
                raise TrajectoryFormatError(f"{path}: {found} of {expected} episodes are there")
        return clips

    def train(
        self,
        module: nn.Module,
        loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
        schedule: Schedule,
        stage: str,
    ) -> dict:
        """Fit, and return what a model card says: seed, steps, batch, seconds and last figures."""
        seconds = fit(module, loss, schedule, stage, self.folder, self.seed, self.ranks)
        last = self.folder.metrics(stage)[-1:]
        metrics = {k: v for line in last for k, v in line.items() if isinstance(v, float)}
        return {
            "command": f"{self.command}, stage {stage}",
            "configuration": self.config.describe(),
            "seed": self.seed,
            "steps": schedule.steps,
            "batch": schedule.batch,
            "training_s": seconds,
            "metrics": {k: v for k, v in metrics.items() if k not in ("time_s", "learning_rate")},
        }

    def write(self, save: Callable[..., None], path: Path, *given: Any, **more: Any) -> None:
        """Save a model; rank 0 does."""
        if self.ranks.first:
            save(path, *given, **more)

    def pretraining(self, base: Base, batch: int) -> Loss:
        """The loss of a base on its episodes and stills."""
        return pretraining_loss(base, self.disturbed(), self.config.action_episodes, batch, self.ranks)

    def make_base(self, path: Path) -> None:
        base, schedule = self.new(Base, self.policy_config()), self.config.base
        made = self.train(base, self.pretraining(base, schedule.batch), schedule, "base")
        weights = {name: tensor.half() for name, tensor in base.state_dict().items()}
        self.write(save_weights, path, weights, {"kind": "base", "made": made})

    def record_demonstrations(self, path: Path) -> None:
        """Each rank shows some of the tasks; what it keeps meanwhile is its own."""
        partial, kept = path.with_suffix(".partial"), path.with_suffix(".kept")
        numbers, shown = range(self.config.demonstrations), []
        for task in self.suite.tasks[self.ranks.part(len(self.suite.tasks))]:
            own = kept / str(self.ranks.rank)
            shown += self.lessons.demonstrate([task] * len(numbers), numbers, "train", own)
        parts = self.ranks.to_first(shown)
        if parts is None:
            return
        shutil.rmtree(partial, ignore_errors=True)
        with TrajectoryWriter(partial) as writer:
            for trajectory in (one for part in parts for one in part):
                writer.write(trajectory)
        partial.rename(path)
        shutil.rmtree(kept, ignore_errors=True)

    def make_finetuned(self, path: Path) -> None:
        base, schedule = self.base(), self.config.finetune
        demonstrations, trained = self.recorded("demonstrations").in_memory(), base.policy
        loss = imitation_loss(base.policy, demonstrations, schedule.batch, self.ranks)
        if self.config.cotrain:
            trained, loss = base, with_pretraining(loss, self.pretraining(base, schedule.batch))
        made = self.train(trained, loss, schedule, "finetune")
        self.write(save_model, path, base.policy, "policy", made)

    def make_policy(self, path: Path) -> None:
        """The fine-tuned policy, once it reads imagined frames as it reads true ones."""
        schedule, policy = self.config.adapt, SmallPolicy.load(self.models / FINETUNED)
        loss = adaptation_loss(policy, *self.replays(), schedule.batch, self.ranks)
        self.write(save_model, path, policy, "policy", self.train(policy, loss, schedule, "adapt"))

    def record_exploration(self, path: Path) -> None:
        self.explore(path, SmallPolicy.load(self.models / FINETUNED), EXPLORATION_START, self.seed)

    def explore(self, path: Path, policy: SmallPolicy, first: int, seed: int) -> None:
        """Record true episodes of a policy that adds up to `perturb` times its own noise, from the training starts
        from number `first` on."""

        def act(numbers: range) -> list[Trajectory]:
            tasks, drawn = in_turn(self.suite, numbers.stop)[numbers.start :], seed + numbers.start
            perturb = self.config.perturb * torch.rand(len(tasks), generator=torch.Generator().manual_seed(drawn))
            starts = [first + i for i in numbers]
            return act_in_true(policy, self.suite, tasks, starts, "train", perturb, drawn, None, self.ranks)

        _record(path, self.episodes[path.name], self.lessons.part, act, self.ranks)

    def record_again(self, path: Path) -> None:
        """Explored successes in turn (all explored episodes, where none succeeded)."""
        clips, reader = self.recorded("exploration"), TrajectoryReader(self.data / "exploration")
        explored = clips.success.any(1).nonzero()[:, 0].tolist() or range(len(clips))

        def again(numbers: range) -> list[Trajectory]:
            seed = self.seed + numbers.start
            scale = self.config.again_noise * np.random.default_rng(seed).random(len(numbers))
            some = [reader[explored[i % len(explored)]] for i in numbers]
            return act_again(some, scale, seed, self.suite, self.ranks)

        _record(path, self.episodes[path.name], self.lessons.part, again, self.ranks)

    def make_kinematics(self, path: Path) -> None:
        if self.ranks.first:
            robot, clips = self.suite.robot, self.carried_out()
            robot = replace(robot, kinematics=fit_own(clips, robot.kinematics))
            made = {"command": f"{self.command}, stage kinematics", "episodes": len(clips)}
            save_weights(path, {}, {"kind": "kinematics", "made": made, **kept_kinematics(robot)})

    def make_reflector(self, path: Path) -> None:
        given = {"threshold": STOP_ABOVE, "text": self.policy_config().text, "learned": self.config.train_encoder}
        base, reflector = self.base(), self.new(SmallReflector, SmallReflectorConfig(**given, **self.lessons.reflector))
        for encoder in {reflector.encoder, reflector.pretrained}:
            encoder.load_state_dict(base.policy.encoder.state_dict())
        reflector.done.load_state_dict(base.done.state_dict())
        made = self.fit_head(reflector)
        if self.config.train_encoder:
            made = self.fit_encoder(reflector)
        self.write(save_model, path, reflector, "reflector", made)

    def fit_head(self, reflector: SmallReflector) -> dict:
        """On the recorded episodes and on some of them as the world model imagines them; returns as `train` does."""
        schedule = self.config.head
        sets = [self.clips(), self.replays()[1]]
        with Progress(sum(map(len, sets)), "reading frames for the reflector") as progress:
            given = self.seed, self.lessons.rivals, progress.advance, self.ranks
            features = join([read_features(reflector, part, *given) for part in sets])
        loss = reward_loss(reflector, features, schedule.batch, ranks=self.ranks)
        return self.train(reflector, loss, schedule, "reflector")

    def fit_encoder(self, reflector: SmallReflector) -> dict:
        """As `fit_head`, encoder and head together; how instructions are read stays."""
        schedule, encoder = self.config.encoder, reflector.encoder
        encoder.requires_grad_(True).text.requires_grad_(False)
        sets = [self.clips(), self.replays()[1]]
        loss = picture_loss(reflector, sets, self.lessons.rivals, schedule.batch, ranks=self.ranks)
        made = self.train(reflector, loss, schedule, "reflector_encoder")
        encoder.requires_grad_(False)
        return made

    def make_ranges(self, path: Path) -> None:
        policy, world = SmallPolicy.load(self.models / POLICY), self.imagining()
        reflector = SmallReflector.load(self.models / "reflector.safetensors")
        engine = Engine(policy, world, reflector, EngineConfig(horizon=self.suite.horizon))
        numbers = range(RANGES_START, RANGES_START + EPISODES)
        starts = self.suite.reset(in_turn(self.suite, EPISODES), numbers, "train")
        networks = {"policy": policy, "world": world.network, "reflector": reflector}
        ranges = measure_ranges(networks, engine, starts, self.seed)
        save_ranges(path, ranges, networks)

    def imagining(self) -> WorldModel:
        """The world model that the stages before have made."""
        return self.world.load(self.models / f"{self.world.name}.safetensors")

    def replays(self) -> tuple[Clips, Clips]:
        """Some of the recorded episodes, as they were and as the world model imagines them along the same actions."""
        if self._replays is None:
            clips, world = self.carried_out(), self.imagining()
            world.network.to(self.device)
            order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(self.seed))
            some = clips.pick(order[: max(1, round(self.config.imagined_share * len(clips)))]).in_memory()
            self._replays = some, as_imagined(world, some, self.seed, self.ranks)
        return self._replays

    def base(self) -> Base:
        """The pretrained base of policy and reflector."""
        base = Base(self.policy_config())
        load_weights(self.models / BASE, base)
        return base.to(memory_format=torch.channels_last)

    def policy_config(self) -> SmallPolicyConfig:
        """Sizes of the policy that fits the robot and the camera."""
        return SmallPolicyConfig(**self.lessons.policy)

    def new(self, network: type[nn.Module], *config: object) -> nn.Module:
        """A network with weights drawn by the seed of the run."""
        torch.manual_seed(self.seed)
        return network(*config).to(memory_format=torch.channels_last)


def _record(path: Path, total: int, every: int, make: Callable[[range], list[Trajectory]], ranks: Ranks) -> None:
    """Write the episodes that `make` returns for 0 .. total - 1, `every` at a time; a killed one goes on. All ranks
    call it and `make`, which returns the episodes at rank 0."""
    partial = path.with_suffix(".partial")
    with TrajectoryWriter(partial, every, append=partial.exists()) if ranks.first else nullcontext([]) as writer:
        with Progress(total, path.stem, done=len(writer)) as progress:
            while (done := ranks.from_first(len(writer))) < total:
                first = done // every * every  # the random numbers are those of a whole part
                numbers = range(first, min(first + every, total))
                for trajectory in make(numbers)[done - first :]:
                    writer.write(trajectory)
                progress.advance(numbers.stop - done)
    if ranks.first:
        partial.rename(path)
