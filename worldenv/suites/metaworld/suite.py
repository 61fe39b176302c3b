"""Meta-World (a Sawyer arm in MuJoCo) behind the interface `Suite`: 4-D actions, several episodes in each process."""

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldenv.errors import UserError, nearest
from worldenv.fields import shown
from worldenv.launch.share import own_cpus
from worldenv.ops.action_map import Gripper
from worldenv.robot.kinematics import Kinematics, is_number
from worldenv.robot.robot import Robot, moved_gripper
from worldenv.suites.actors import Actor, program
from worldenv.suites.held import HeldSuite, check_views, count, drawn_from
from worldenv.suites.metaworld.installed import installed
from worldenv.suites.metaworld.process import Moments
from worldenv.suites.metaworld.tasks import (
    HIGH_M,
    HORIZON_STEPS,
    INSTRUCTIONS,
    SETS,
    THREE,
    TIP_M,
    TURN_RAD,
    MetaWorldTask,
)
from worldenv.suites.offscreen import Moment

PROGRAM = program("worldenv.suites.metaworld.process")
VIEWS = ("corner", "top")
CLEAR_M = 0.25  # m: above the buttons, handles and plates of the three tasks of the suite `metaworld`
STEP_M, CLOSING = 0.01, 0.08  # of a step: how far a unit action drives the hand, what the fingers close of their way
SAWYER = Gripper(tip_closed_m=0.015, tip_opening_m=0.035, finger_m=0.045, hand_half_m=0.05, tool_m=0.15)


class MetaWorldSuite(HeldSuite):
    """Tasks of Meta-World, each with the sentence of its paper; nobody but the expert sees the goal's numbers.

    Every episode has an environment of its own (20 MB), and `most` of them are held together, in `workers` processes
    (by default one for each core that this process may use). A process that crashes, or says nothing for `timeout_s`,
    is replaced and its episodes are repeated. Every action is carried out `repeat` times; `horizon` counts actions.

    Start states are drawn, by a seed of split and number, from the places that Meta-World draws its own from. The
    splits share none.

    Raises UserError for an unknown name or value, and in one line if Meta-World or what it needs is not installed.
    """

    practice_starts = 240

    def __init__(
        self,
        name: str = "metaworld",  # of a set of tasks
        tasks: Sequence[str] | None = None,  # their names; None: those of the set
        size: int = 64,  # pixels, height = width
        views: Sequence[str] = VIEWS[:1],
        repeat: int = 4,
        horizon: int | None = None,
        most: int = 24,
        workers: int | None = None,
        timeout_s: float = 180.0,
        program: Sequence[str] = PROGRAM,  # what simulates; another one in tests
    ):
        if not isinstance(name, str) or name not in SETS:
            raise UserError(f"unknown suite of Meta-World {shown(name)}{nearest(str(name), SETS)}")
        chosen, steps = SETS[name]
        self.tasks = tuple(MetaWorldTask(_known(task)) for task in (chosen if tasks is None else tasks))
        self.known = {task.name: task for task in self.tasks}
        if not self.tasks or len(self.known) < len(self.tasks):
            raise UserError(f"tasks is {shown(tasks)}; it should be names of tasks, at least one and none twice")
        self.name, self.views = name, check_views(views, VIEWS, "Meta-World")
        self.size, self.repeat, self.most = count("size", size), count("repeat", repeat), count("most", most)
        self.horizon = count("horizon", max(1, steps // self.repeat) if horizon is None else horizon)
        if self.horizon * self.repeat > HORIZON_STEPS:
            raise UserError(
                f"horizon is {self.horizon}, of actions that are repeated {self.repeat} times; an episode of "
                f"Meta-World has at most {HORIZON_STEPS} steps"
            )
        if not is_number(timeout_s) or timeout_s <= 0:
            raise UserError(f"timeout_s is {shown(timeout_s)}; it should be a positive number of seconds")
        self.workers = count("workers", own_cpus() if workers is None else workers)
        self._installed = installed()
        self._actors = [Actor(program, timeout_s) for _ in range(min(self.workers, self.most))]
        self._acting: list[tuple[Actor, list[int]]] = []  # with the rows of its episodes
        self._told: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by row: what the expert wants, places
        self.robot = _robot(self.tasks, self.repeat)
        self.close = weakref.finalize(self, _end, self._actors)

    def groups(self, tasks: Sequence[MetaWorldTask]) -> list[list[int]]:
        """Rows of the episodes that can be held together: of every task about as many, so that few scenes are built."""
        nth, order = Counter(), []
        for row, task in enumerate(tasks):
            order.append((nth[task.name], row))
            nth[task.name] += 1
        rows = [row for _, row in sorted(order)]
        return [rows[first : first + self.most] for first in range(0, len(rows), self.most)]

    def about(self) -> dict[str, Any]:
        """What a result depends on beside the policy: packages, rendering, start states."""
        return self._installed | {
            "pictures": "without shadows and reflections",
            "size": self.size,
            "views": list(self.views),
            "repeat": self.repeat,
            "horizon": self.horizon,
            "starts": "drawn from the places of each task, by a seed of split and number",
            "workers": self.workers,
            "repeated_groups": sum(actor.repeated for actor in self._actors),  # of episodes, whose process had died
        }

    def expert_actions(self) -> np.ndarray:  # [E, 4] float32 in [-1, 1]
        """What Meta-World's scripted experts would do now. Raises UserError if no episodes are held."""
        return np.stack([self._told[row][0] for row in sorted(self._going_on())])

    def places(self) -> np.ndarray:  # [E, 6] float32 m
        """Where the thing of each task and its goal are. Raises UserError if no episodes are held."""
        return np.stack([self._told[row][1] for row in sorted(self._going_on())])

    def _begin(self, rows: list[int], tasks: list[MetaWorldTask], starts: list[int], split: str) -> dict[int, Moment]:
        runs = [run.tolist() for run in np.array_split(rows, min(len(self._actors), len(rows)))]
        self._acting = list(zip(self._actors, runs, strict=False))
        for actor, run in self._acting:
            begun = [self._episode(tasks[row], starts[row], split) for row in run]
            actor.begin(begun[0][0], ([episode for _, episode in begun],))
        return self._answers()

    def _episode(self, task: MetaWorldTask, start: int, split: str) -> tuple[tuple, tuple]:
        scene = self.size, self.views, self._installed["gl"]
        return scene, (task.name, tuple(drawn_from(split, start).entropy))

    def _act(self, rows: list[int], actions: np.ndarray) -> dict[int, Moment]:
        for actor, run in self._acting:
            actor.act(actions[run].swapaxes(0, 1), True)
        return self._answers()

    def _answers(self) -> dict[int, Moment]:
        out = {}
        for actor, run in self._acting:
            found: Moments = actor.answer()
            for i, row in enumerate(run):
                out[row] = Moment(found.done[:, i], found.frames[i], found.proprio[i], found.camera[i])
                self._told[row] = found.wanted[i], found.places[i]
        return out


def _robot(tasks: Sequence[MetaWorldTask], repeat: int) -> Robot:
    """A hand that is driven to a place, which is known exactly; it follows within 0.1 s.

    Where tasks differ in how low the hand may go, the limit is the lowest.
    """
    low = np.add(np.min([task.low_m for task in tasks], axis=0), TIP_M)
    kinematics = Kinematics(
        translation_step=STEP_M * repeat,
        aperture_rate=CLOSING * repeat,
        low=(*low.tolist(), *TURN_RAD),
        high=(*np.add(HIGH_M, TIP_M).tolist(), *TURN_RAD),
        rotation="fixed",
    )
    return moved_gripper(kinematics, SAWYER, CLEAR_M if {task.name for task in tasks} <= {*THREE} else None)


def _known(task: Any) -> str:
    if not isinstance(task, str) or task not in INSTRUCTIONS:
        raise UserError(f"unknown task of Meta-World {shown(task)}{nearest(str(task), INSTRUCTIONS)}")
    return task


def _end(actors: Sequence[Actor]) -> None:
    for actor in actors:
        actor.end()
