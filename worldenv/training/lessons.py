"""What the models of a suite learn from: its expert, episodes to pretrain on, other tasks as negative examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from worldenv.data.clips import Clips
from worldenv.data.disturbed import Disturbed
from worldenv.data.trajectory import Trajectory
from worldenv.interfaces.suite import Suite, Task
from worldenv.suites.metaworld import demonstrate as metaworld
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.tabletop import demonstrate as tabletop
from worldenv.suites.tabletop.physics import task_by_name
from worldenv.suites.tabletop.scenes import TASKS, siblings
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training.pretrain import disturbed_episodes


class Lessons(Protocol):
    """What `Pipeline` asks of a suite."""

    suite: Suite
    policy: Mapping[str, Any]  # fields of SmallPolicyConfig that differ from the default
    records_what_is_done: bool  # whether the actions of the demonstrations are those that were carried out

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> list[Trajectory]:
        """Episodes of an expert, successful ones only."""

    def disturbed(self, count: int, seed: int) -> Disturbed:
        """Episodes to pretrain on."""

    def rivals(self, task: str) -> Sequence[Task]:
        """Tasks that are not done where this one is acted out."""


class TabletopLessons:
    """Ten tasks, and a pretraining suite without them."""

    policy: Mapping[str, Any] = {}
    records_what_is_done = True

    def __init__(self) -> None:
        self.suite = TabletopSuite()

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> list[Trajectory]:
        return tabletop.demonstrate(tasks, starts, split)

    def disturbed(self, count: int, seed: int) -> Disturbed:
        return disturbed_episodes(count, seed)

    def rivals(self, task: str) -> Sequence[Task]:
        return siblings(task_by_name(task))


class MetaWorldLessons:
    """Three tasks of Meta-World; a dozen others to pretrain on."""

    records_what_is_done = False

    def __init__(self) -> None:
        self.suite = MetaWorldSuite()
        self.policy = {"view": self.suite.views[0], "scale_low": (0.05, 0.05, 0.05, 0.3)}

    def demonstrate(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> list[Trajectory]:
        return metaworld.demonstrate(self.suite, tasks, starts, split)

    def disturbed(self, count: int, seed: int) -> Disturbed:
        return metaworld.disturb(count, seed, like=self.suite)

    def rivals(self, task: str) -> Sequence[Task]:
        return [other for other in self.suite.tasks if other.name != task]


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


LESSONS: dict[str, Callable[[], Lessons]] = {"tabletop": TabletopLessons, "metaworld": MetaWorldLessons}
