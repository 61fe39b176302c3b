"""What the models of a suite learn from: its expert, episodes to pretrain on, other tasks as negative examples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from worldenv.data.clips import Clips
from worldenv.data.disturbed import Disturbed
from worldenv.data.trajectory import Trajectory
from worldenv.interfaces.suite import Suite, Task
from worldenv.interfaces.true_things import TrueThings
from worldenv.nn.sentence import SentenceEncoder
from worldenv.records.kept import Kept
from worldenv.suites.libero import demonstrate as libero
from worldenv.suites.libero.suite import LiberoSuite
from worldenv.suites.libero.tasks import SMALL
from worldenv.suites.metaworld import demonstrate as metaworld
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.tabletop import demonstrate as tabletop
from worldenv.suites.tabletop.physics import task_by_name
from worldenv.suites.tabletop.scenes import TASKS, siblings
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.suites.tabletop.things import TabletopThings
from worldenv.suites.traced import TracedThings
from worldenv.training.pretrain import disturbed_episodes

CHUNK = 8  # actions that a policy of LIBERO decides on at once
# Least scale of the exploration noise in LIBERO, for each number of an action. Turns of the hand add up: with the
# 0.3 of tabletop the hand tilts by some 50 degrees in an episode, and hardly any grasp succeeds (benchmarks/LOG.md).
LEAST_SCALE = (0.05,) * 6 + (0.3,)


class Lessons(Protocol):
    """What `Pipeline` asks of a suite."""

    suite: Suite
    policy: Mapping[str, Any]  # fields of SmallPolicyConfig that differ from the default
    reflector: Mapping[str, Any]  # likewise of SmallReflectorConfig
    records_what_is_done: bool  # whether demonstrations record the actions that were carried out
    part: int  # episodes that are recorded at a time: their random numbers are drawn together
    keeps: bool  # whether the episodes to pretrain on are kept in a folder: then one rank makes them, and all read them
    keeps_states: bool  # whether the episodes to pretrain on have true states, for labels to pretrain the composer

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str, kept: Path) -> list[Trajectory]:
        """Episodes of an expert, successful ones only. What takes long may be kept in a folder."""

    def disturbed(self, count: int, stills: int, seed: int, kept: Path) -> Disturbed:
        """Episodes to pretrain on, at most `count`, and so many stills. What takes long may be kept in a folder."""

    def true_things(self, clips: Clips, kept: Kept) -> TrueThings:
        """The true things of recorded episodes, to train the composer. Their actions have to be those carried out.

        What takes long may be kept.
        """

    def rivals(self, task: str) -> Sequence[Task]:
        """Tasks that an episode of this task does not do. Shown with their instructions, it is a failure."""


class TabletopLessons:
    """Ten tasks, and a pretraining suite without them."""

    policy: Mapping[str, Any] = {}
    reflector: Mapping[str, Any] = {}
    records_what_is_done = True
    part = 100
    keeps = False
    keeps_states = True

    def __init__(self) -> None:
        self.suite = TabletopSuite()

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str, kept: Path) -> list[Trajectory]:
        return tabletop.demonstrate(tasks, starts, split)

    def disturbed(self, count: int, stills: int, seed: int, kept: Path) -> Disturbed:
        return disturbed_episodes(count, seed)

    def true_things(self, clips: Clips, kept: Kept) -> TabletopThings:
        return TabletopThings.of(clips)

    def rivals(self, task: str) -> Sequence[Task]:
        return siblings(task_by_name(task))


class MetaWorldLessons:
    """Three tasks of Meta-World; a dozen others to pretrain on."""

    reflector: Mapping[str, Any] = {}
    records_what_is_done = False
    part = 100
    keeps = False
    keeps_states = False

    def __init__(self) -> None:
        self.suite = MetaWorldSuite()
        self.policy = {"view": self.suite.views[0], "scale_low": (0.05, 0.05, 0.05, 0.3)}

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str, kept: Path) -> list[Trajectory]:
        return metaworld.demonstrate(self.suite, tasks, starts, split)

    def disturbed(self, count: int, stills: int, seed: int, kept: Path) -> Disturbed:
        return metaworld.disturb(count, seed, like=self.suite)

    def true_things(self, clips: Clips, kept: Kept) -> TracedThings:
        return TracedThings.of(clips, self.suite, kept)

    def rivals(self, task: str) -> Sequence[Task]:
        return [other for other in self.suite.tasks if other.name != task]


class LiberoLessons:
    """Some tasks of one of LIBERO's suites; its other tasks, and some of libero_90, to pretrain on.

    Raises UserError if LIBERO is not installed, or the language model that reads the instructions.
    """

    # Chosen on 120 validation starts of libero_object-shuffled (benchmarks/LOG.md, 2026-11-30), not checked elsewhere.
    reflector: Mapping[str, Any] = {"patience": 6}
    records_what_is_done = False
    part = 60  # some minutes
    keeps = True
    keeps_states = False

    def __init__(self, name: str) -> None:
        benchmark, given = SMALL[name]
        self.suite = LiberoSuite(benchmark, **given)
        self.policy = {"view": self.suite.views[0], "chunk": CHUNK, "text": "sentences", "scale_low": LEAST_SCALE}
        SentenceEncoder.tokenize([task.instruction for task in self.suite.tasks])  # else an error only after recording

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str, kept: Path) -> list[Trajectory]:
        return libero.demonstrate(self.suite, tasks, starts, split, kept)

    def disturbed(self, count: int, stills: int, seed: int, kept: Path) -> Disturbed:
        return libero.disturb(count, stills, seed, CHUNK, self.suite, kept)

    def true_things(self, clips: Clips, kept: Kept) -> TracedThings:
        return TracedThings.of(clips, self.suite, kept)

    def rivals(self, task: str) -> Sequence[Task]:
        """The other tasks of the suite; if it has only one, those of its benchmark."""
        others = self.suite.tasks if len(self.suite.tasks) > 1 else self.suite.listed
        return [other for other in others if other.name != task]


class Recorded(NamedTuple):
    """A task that is known from recordings only."""

    name: str
    instructions: tuple[str, ...]


def rivals_in(clips: Clips) -> Callable[[str], Sequence[Task]]:
    """As `rivals`, of any recordings: the other tasks in them, or the task itself if it is alone."""
    if {*clips.tasks} <= {task.name for task in TASKS}:
        return lambda name: siblings(task_by_name(name))
    tasks = {name: Recorded(name, (clips.instructions[i],)) for i, name in enumerate(clips.tasks)}
    return lambda name: [task for task in tasks.values() if task.name != name] or [tasks[name]]


LESSONS: dict[str, Callable[[], Lessons]] = {
    "tabletop": TabletopLessons,
    "metaworld": MetaWorldLessons,
    **{name: partial(LiberoLessons, name) for name in SMALL},
}
