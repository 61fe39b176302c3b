"""Meta-World (a Sawyer arm in MuJoCo) behind the interface `Suite`: 4-D actions, one environment for each episode."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from worldenv.errors import UserError, nearest
from worldenv.fields import shown
from worldenv.ops.action_map import Gripper
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import Robot, moved_gripper
from worldenv.suites.held import HeldSuite, check_views, count, drawn_from
from worldenv.suites.metaworld.installed import installed
from worldenv.suites.metaworld.tasks import (
    HIGH_M,
    HORIZON_STEPS,
    INSTRUCTIONS,
    SETS,
    TIP_M,
    TURN_RAD,
    MetaWorldTask,
)
from worldenv.suites.offscreen import Moment

if TYPE_CHECKING:
    from worldenv.suites.metaworld.scene import Scene  # imports Meta-World

VIEWS = ("corner", "top")
STEP_M, CLOSING = 0.01, 0.08  # of a step: how far a unit action drives the hand, what the fingers close of their way
SAWYER = Gripper(tip_closed_m=0.015, tip_opening_m=0.035, finger_m=0.045, hand_half_m=0.05, tool_m=0.15)


class MetaWorldSuite(HeldSuite):
    """Tasks of Meta-World, each with the sentence of its paper; nobody but the expert sees the goal's numbers.

    Every episode has an environment of its own (20 MB) in this process; `most` of them are held together, and a scene
    is begun again in 10 ms. Every action is carried out `repeat` times; `horizon` counts actions.

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
        self._installed = installed()
        self._kept: dict[str, list[Scene]] = {}
        self._scenes: dict[int, Scene] = {}  # by row, of the episodes begun last
        self.robot = _robot(self.tasks, self.repeat)

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
        }

    def expert_actions(self) -> np.ndarray:  # [E, 4] float32 in [-1, 1]
        """What Meta-World's scripted experts would do now in the episodes that are held."""
        return self._each(lambda scene: scene.expert_action())

    def places(self) -> np.ndarray:  # [E, 6] float32 m
        """Where the thing of each task and its goal are, in the episodes that are held."""
        return self._each(lambda scene: scene.places())

    def _each(self, ask: Callable[["Scene"], np.ndarray]) -> np.ndarray:
        """Raises UserError if no episodes are held."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an expert: that its wish is cut off at 1
            return np.stack([ask(self._scenes[row]) for row in sorted(self._going_on())])

    def _begin(self, rows: list[int], tasks: list[MetaWorldTask], starts: list[int], split: str) -> dict[int, Moment]:
        self._scenes = self._taken({row: tasks[row].name for row in rows})
        for row, scene in self._scenes.items():
            scene.begin(np.random.default_rng(drawn_from(split, starts[row])))
        return {row: _moment(scene, []) for row, scene in self._scenes.items()}

    def _act(self, rows: list[int], actions: np.ndarray) -> dict[int, Moment]:
        return {row: _moment(self._scenes[row], [self._scenes[row].step(a) for a in actions[row]]) for row in rows}

    def _taken(self, names: dict[int, str]) -> dict[int, "Scene"]:
        """A scene for each row; those of before, where there are some of its task."""
        wanted = Counter(names.values())
        if sum((wanted | Counter({name: len(kept) for name, kept in self._kept.items()})).values()) > 3 * self.most:
            self._kept = {name: kept for name, kept in self._kept.items() if name in wanted}
        for name, number in wanted.items():
            kept = self._kept.setdefault(name, [])
            kept += [self._scene(name) for _ in range(number - len(kept))]
        left = {name: iter(self._kept[name]) for name in wanted}
        return {row: next(left[name]) for row, name in names.items()}

    def _scene(self, name: str) -> "Scene":
        from worldenv.suites.metaworld.scene import Scene  # imports Meta-World

        return Scene(name, self.size, self.views, self._installed["gl"])


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
    return moved_gripper(kinematics, SAWYER)


def _moment(scene: "Scene", done: list[bool]) -> Moment:
    return Moment(np.array(done, dtype=bool), scene.frames(), scene.proprio(), scene.camera())


def _known(task: Any) -> str:
    if not isinstance(task, str) or task not in INSTRUCTIONS:
        raise UserError(f"unknown task of Meta-World {shown(task)}{nearest(str(task), INSTRUCTIONS)}")
    return task
