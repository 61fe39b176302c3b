"""Between two rounds of practice: world model and reflector learn on from true episodes of the policy as it is then."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from worldenv.data.clips import Clips
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.policy.small import SmallPolicy
from worldenv.records.model_files import RANGES, save_model
from worldenv.records.run_folder import RunFolder
from worldenv.reflector.small import SmallReflector
from worldenv.robot.robot import Robot
from worldenv.training.config import MOST_EPISODES, RefreshConfig, ScratchConfig, command_for, round_name
from worldenv.training.fit import Schedule
from worldenv.training.given import POLICY
from worldenv.training.pipeline import Pipeline, Stage
from worldenv.training.world_stages import CONTACT, composer

ROUND_START = 4_000_000  # first training start of the true episodes of round 1: no stage before uses these starts
COMPOSER, REFLECTOR = (f"{name}.safetensors" for name in ("composer", "reflector"))


class Refresh(Pipeline):
    """`run()` makes the models with which round `number` (from 1) begins: a whole set, in <folder>/models/round-N.

    Policy: as it is now; with its own noise it records true episodes from training starts (<folder>/data/round-N).
    Contact network, composer and head of the reflector: those of the round before, which learn on from the true
    episodes of all rounds so far and from the demonstrations, which are made again unless the run has them. Contact
    network and composer do without demonstrations whose recorded actions are not those that were carried out. The
    ranges of 8 bits: measured again, where the models before have them.

    As in every pipeline, what is there is not made again.
    """

    def __init__(
        self,
        folder: RunFolder,
        number: int,
        before: Path,  # the folder of the models of the round before
        policy: SmallPolicy,
        config: RefreshConfig,
        scratch: ScratchConfig,  # demonstrations, noise of exploration, unroll: as when the models were made
        seed: int,
        suite: str = "tabletop",
        ranks: Ranks = ALONE,
    ):
        schedules = {name: getattr(config, name) for name in ("contact", "student", "head")}
        super().__init__(folder, replace(scratch, **schedules), seed, "composer", suite=suite, ranks=ranks)
        self.number, self.before, self.policy = number, before, policy
        self.models, self.labels = self.models / round_name(number), self.labels / round_name(number)
        self.command = f"{command_for(suite)} --rounds R --seed {seed}"
        self.rounds = [round_name(i) for i in range(1, number + 1)]
        self.episodes |= dict.fromkeys(self.rounds, config.episodes * len(self.suite.tasks))

    def stages(self) -> list[Stage]:
        """The stages in order."""
        return [
            (self.data / "demonstrations", self.record_demonstrations),
            (self.models / POLICY, self.make_policy),
            (self.data / round_name(self.number), self.record_round),
            (self.models / CONTACT, self.make_contact),
            (self.models / COMPOSER, self.make_composer),
            (self.models / REFLECTOR, self.make_reflector),
            *([(self.models / RANGES, self.make_ranges)] if (self.before / RANGES).exists() else []),
        ]

    @cached_property
    def robot(self) -> Robot:
        """The suite's robot with the kinematics of the world model of the round before, which learns on with them."""
        return self.world.load(self.before / COMPOSER).robot

    def clips(self) -> Clips:
        """Demonstrations and the true episodes of all rounds so far."""
        return self.recorded("demonstrations", *self.rounds)

    def carried_out(self) -> Clips:
        """The true episodes of all rounds so far, with the demonstrations if they record what was carried out."""
        return self.clips() if self.lessons.records_what_is_done else self.recorded(*self.rounds)

    def train(
        self,
        module: nn.Module,
        loss: Callable[[Any], tuple[Tensor, dict[str, float]]],
        schedule: Schedule,
        stage: str,
    ) -> dict:
        """As in every pipeline, under a name of the round's own."""
        return super().train(module, loss, schedule, f"round_{self.number}_{stage}")

    def make_policy(self, path: Path) -> None:
        made = {"command": f"{self.command}, practice until round {self.number}", "seed": self.seed}
        self.write(save_model, path, self.policy, "policy", made)

    def record_round(self, path: Path) -> None:
        first = 10 * MOST_EPISODES * (self.number - 1)
        self.explore(path, SmallPolicy.load(self.models / POLICY), ROUND_START + first, self.seed + first)

    def make_contact(self, path: Path) -> None:
        network = composer(self.before / COMPOSER)
        self.world.fit_contact(path, network.contact, network.plate)

    def make_composer(self, path: Path) -> None:
        encoder = SmallReflector.load(self.before / REFLECTOR).pretrained  # that of the base, which never changes
        self.world.fit_student(path, composer(self.before / COMPOSER), encoder)

    def make_reflector(self, path: Path) -> None:
        reflector = SmallReflector.load(self.before / REFLECTOR)
        self.write(save_model, path, reflector, "reflector", self.fit_head(reflector))
