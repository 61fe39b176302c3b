"""LIBERO (Franka Panda in MuJoCo) behind the interface `Suite`: episodes in processes, one scene in each."""

import weakref
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from worldenv.data.demonstration import Demonstration
from worldenv.data.trajectory import Trajectory
from worldenv.errors import UserError, nearest
from worldenv.fields import shown
from worldenv.launch.share import own_cpus
from worldenv.robot.kinematics import is_number
from worldenv.robot.robot import Robot
from worldenv.suites.actors import Actor, ask_once, program
from worldenv.suites.held import HeldSuite, check_views, count, drawn_from
from worldenv.suites.libero.panda import VIEWS, panda
from worldenv.suites.libero.process import Acted
from worldenv.suites.libero.tasks import HORIZONS, LiberoTask
from worldenv.suites.offscreen import Moment

PROGRAM = program("worldenv.suites.libero.process")
Pictures = Literal["fast", "official"]


class LiberoSuite(HeldSuite):
    """The tasks of one of LIBERO's or LIBERO-PRO's suites, with the official initial states.

    An episode needs a process of 2 GB for itself. `workers` of them run at once (by default one for each core that
    this process may use), so no more episodes can be stepped together: `groups` says which. A process that crashes, or
    says nothing for `timeout_s`, is replaced and its episode repeated. Every action is carried out `repeat` times, and
    `horizon` counts actions: by default the usual number of steps, divided by `repeat`.

    Start states: number n of "test" is official state n modulo their number (50), with the fixtures placed by a seed of
    n; so 0 to 49 are those of the official protocol. "train" and "validation" draw all places from the regions of the
    task by a seed of the number, as the official states were once drawn. The splits share none. In LIBERO Object a
    thing hardly moves from one official state to the next; with `shuffled`, a policy has to look where it stands.

    Raises UserError for an unknown name or value, and in one line if LIBERO or what it needs is not installed.
    """

    def __init__(
        self,
        name: str = "libero_object",
        tasks: Sequence[int | str] | None = None,  # their numbers or names; None: all
        size: int = 64,  # pixels, height = width
        views: Sequence[str] = VIEWS[:1],
        repeat: int = 1,
        horizon: int | None = None,
        pictures: Pictures = "fast",  # "official": with reflections and multisampling, as LIBERO draws
        workers: int | None = None,
        timeout_s: float = 180.0,
        practice_starts: int = 240,  # from how many start states practice draws
        shuffled: bool = False,  # the things stand in each other's places, in an order drawn for each start state
        robot: Robot | None = None,  # None: the Panda, with kinematics for this `repeat`
        program: Sequence[str] = PROGRAM,  # what simulates; another one in tests
    ):
        if not isinstance(name, str) or name not in HORIZONS:
            raise UserError(f"unknown suite of LIBERO {shown(name)}{nearest(str(name), HORIZONS)}")
        if pictures not in get_args(Pictures):
            raise UserError(f"pictures is {shown(pictures)}; it should be {' or '.join(get_args(Pictures))}")
        if not is_number(timeout_s) or timeout_s <= 0:
            raise UserError(f"timeout_s is {shown(timeout_s)}; it should be a positive number of seconds")
        if shuffled and name != "libero_object":
            raise UserError(f"shuffled is for libero_object, whose things all stand on the floor, not for {name}")
        self.views = check_views(views, VIEWS, "LIBERO")
        self.size, self.repeat = count("size", size), count("repeat", repeat)
        horizon = max(1, HORIZONS[name] // self.repeat) if horizon is None else horizon
        workers = own_cpus() if workers is None else workers
        self.name, self.pictures, self.shuffled = name, pictures, shuffled
        self.robot = panda(self.repeat, name) if robot is None else robot
        self.horizon, self.workers = count("horizon", horizon), count("workers", workers)
        self.practice_starts = count("practice_starts", practice_starts)
        self.most = self.workers
        listed, self._installed = ask_once(program, ("describe", name), timeout_s)
        self.listed = tuple(LiberoTask(stem, i, *told) for i, (stem, *told) in enumerate(listed))
        self.tasks = self.listed if tasks is None else _chosen(self.listed, tasks)
        self.known = {task.name: task for task in self.tasks}
        if name == "libero_object" and self.views[0] == VIEWS[0]:
            from worldenv.suites.libero.detector import find_things  # imports torch

            self.find_things = find_things
        self.program = tuple(program)
        self._actors = [Actor(self.program, timeout_s) for _ in range(self.workers)]
        self.close = weakref.finalize(self, _end, self._actors)

    def groups(self, tasks: Sequence[LiberoTask]) -> list[list[int]]:
        """Rows of the episodes that can be held together, a group after the other, sorted so that few scenes are built.

        Each actor gets a run of rows with their tasks in order, and group i holds the i-th row of every run.
        """
        rows = sorted(range(len(tasks)), key=lambda row: self._task(tasks[row]).number)
        runs = [run.tolist() for run in np.array_split(rows, min(self.workers, len(rows)))] if rows else []
        return [[run[i] for run in runs if i < len(run)] for i in range(len(runs[0]) if runs else 0)]

    def demonstrate(
        self,
        tasks: Sequence[LiberoTask],
        starts: Sequence[int],
        split: str,
        noise: float = 0.3,  # greatest scale of the noise on what is carried out; the action that is meant is recorded
        look: Sequence[bool] | None = None,  # whether an episode is drawn if it succeeds; None: all
        horizon: int | None = None,  # actions after which the expert gives up; None: that of the suite
        detour: bool = False,  # whether the hand goes to a random place before the recording begins
    ) -> list[Demonstration]:
        """Let the expert act out an episode for each (task, start state), each in a process: at most `workers`.

        Every row has the same process each time, so a task is best kept in its row. Raises UserError for an unknown
        task or split, for too many rows, or if a scene fails again and again.
        """
        horizon = self.horizon if horizon is None else count("horizon", horizon)
        tasks, starts = self.checked(tasks, starts, split)
        look = [True] * len(tasks) if look is None else list(look)
        if len(tasks) > self.workers:
            raise UserError(f"there are {len(tasks)} episodes for {self.workers} workers; give at most one for each")
        if len(look) != len(tasks):
            raise UserError(f"look has {len(look)} values for {len(tasks)} episodes; it should have one for each")
        self._held = None
        for actor, task, start, is_seen in zip(self._actors, tasks, starts, look, strict=False):
            how = horizon, self.repeat, float(noise), bool(is_seen), detour
            actor.perform(self._scene(task), "demonstrate", *self._start(task, start, split), *how)
        acted = [actor.answer() for actor in self._actors[: len(tasks)]]
        return [self._demonstration(*row, split) for row in zip(acted, tasks, starts, strict=True)]

    def draw(self, task: LiberoTask, start: int, split: str, states: np.ndarray) -> np.ndarray:
        """What the cameras of this suite see [T, V, H, W, 3] in states [T, S] of an episode that began at this start.

        Raises UserError for an unknown task or split, and for states of another length.
        """
        (task,), (start,) = self.checked([task], [start], split)
        self._held = None
        self._actors[0].perform(self._scene(task), "draw", *self._start(task, start, split), np.asarray(states))
        return self._actors[0].answer()

    @property
    def repeated(self) -> int:
        """Episodes that were repeated because their process crashed or hung."""
        return sum(actor.repeated for actor in self._actors)

    def about(self) -> dict[str, Any]:
        """What a result depends on beside the policy: packages, rendering, start states, and how many were repeated."""
        return self._installed | {
            "pictures": self.pictures,
            "size": self.size,
            "views": list(self.views),
            "repeat": self.repeat,
            "horizon": self.horizon,
            "test_starts": "official initial states, fixtures by seed" + ", things shuffled" * self.shuffled,
            "workers": self.workers,
            "repeated_episodes": self.repeated,
        }

    def _begin(self, rows: list[int], tasks: list[LiberoTask], starts: list[int], split: str) -> dict[int, Moment]:
        for actor, row in zip(self._actors, rows, strict=False):
            actor.begin(self._scene(tasks[row]), self._start(tasks[row], starts[row], split))
        return self._answers(rows)

    def _act(self, rows: list[int], actions: np.ndarray) -> dict[int, Moment]:
        for actor, row in zip(self._actors, rows, strict=False):  # by actor, the row of the episode that it acts out
            actor.act(actions[row], True)
        return self._answers(rows)

    def _episode(self, task: LiberoTask, start: int, split: str) -> tuple[tuple, tuple]:
        return self._scene(task), self._start(task, start, split)

    def _scene(self, task: LiberoTask) -> tuple:
        return self.name, task.number, self.size, self.views, self.pictures, self.shuffled

    def _start(self, task: LiberoTask, number: int, split: str) -> tuple[int | None, int]:
        """The official state (None: places are drawn), and the seed of all that is drawn."""
        seed = drawn_from(split, number).generate_state(1)[0]
        return number % task.states if split == "test" else None, int(seed)

    def _demonstration(self, acted: Acted, task: LiberoTask, start: int, split: str) -> Demonstration:
        outcome = bool(acted.done.any()), len(acted.done), acted.told
        if acted.frames is None:
            return Demonstration(*outcome)
        parts = acted.frames, acted.proprio, acted.actions, acted.done, acted.camera, self.views
        trajectory = Trajectory(*parts, task.instruction, task.name, start, split, "expert")
        extras = {"states": acted.states[:-1], "obs/joint_states": acted.joints[1:]}
        return Demonstration(*outcome, trajectory, extras | {"split": split, "start": str(start)}, acted.places)

    def _answers(self, rows: list[int]) -> dict[int, Moment]:
        return {row: actor.answer() for actor, row in zip(self._actors, rows, strict=False)}


def _chosen(tasks: Sequence[LiberoTask], wanted: Any) -> tuple[LiberoTask, ...]:
    """Some of the tasks, by number or name. Raises UserError for one that is unknown or there twice, and for none."""
    by_name = {key: task for task in tasks for key in (task.number, task.name)}
    if not isinstance(wanted, list | tuple) or not wanted:
        raise UserError(f"tasks is {shown(wanted)}; it should be a tuple of numbers or names of tasks, at least one")
    for one in wanted:
        if not isinstance(one, int | str) or one not in by_name:
            raise UserError(
                f"tasks has {shown(one)}, no task of this suite: numbers are 0 to {len(tasks) - 1}"
                + (nearest(one, [task.name for task in tasks]) if isinstance(one, str) else "")
            )
    found = tuple(by_name[one] for one in wanted)
    if len(set(found)) < len(found):
        raise UserError(f"tasks is {shown(wanted)}; it has a task twice")
    return found


def _end(actors: Sequence[Actor]) -> None:
    for actor in actors:
        actor.end()
