"""What suites share whose simulator holds few episodes at a time: begin any number of them, step those of one group."""

from collections.abc import Sequence
from multiprocessing.connection import wait
from operator import index
from typing import Any

import numpy as np
import torch

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.interfaces.suite import Task
from worldenv.records.progress import Progress
from worldenv.robot.robot import Robot
from worldenv.suites.actors import Actor
from worldenv.suites.offscreen import Moment

SPLITS = ("train", "validation", "test")


class HeldSuite:
    """A suite that holds at most `most` episodes at a time: `groups` says which ones together.

    A subclass sets the attributes, with `tasks` and `known` (the same by name), and defines `groups`, `_begin`, `_act`
    and `_episode`. Every action is carried out `repeat` times; a task is done if it is after any of them.
    """

    name: str
    tasks: Sequence[Task]
    robot: Robot
    repeat: int
    most: int
    known: dict[str, Task]
    _actors: Sequence[Actor]
    _held: list[int] | None = None  # the rows of the episodes that can go on, as `_begin` was given them

    def groups(self, tasks: Sequence[Task]) -> list[list[int]]:
        """Rows of the episodes that can be held together, a group after the other."""
        raise NotImplementedError

    def _begin(self, rows: list[int], tasks: list[Any], starts: list[int], split: str) -> dict[int, Moment]:
        """Begin the episodes of these rows of `tasks` and `starts`; what is seen, by row."""
        raise NotImplementedError

    def _act(self, rows: list[int], actions: np.ndarray) -> dict[int, Moment]:  # [E, n, A], by row
        """Carry out actions in the episodes that `_begin` has begun last."""
        raise NotImplementedError

    def _episode(self, task: Any, start: int, split: str) -> tuple[tuple, tuple]:
        """The arguments of the simulator's `load` for the scene of an episode, and those that begin the episode."""
        raise NotImplementedError

    def reset(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> Starts:
        """Begin an episode for each (task, start state); what their cameras show.

        Any number may be begun; only a group that is held together can be stepped. Raises UserError for an unknown
        task or split, or if a scene fails again and again.
        """
        tasks, starts = self.checked(tasks, starts, split)
        groups, moments = self.groups(tasks), {}
        self._held = None
        if len(groups) == 1:
            moments = self._begin(groups[0], tasks, starts, split)
            self._held = groups[0]
        else:
            with Progress(len(tasks), f"start states of {self.name}") as progress:
                for rows in groups:
                    moments |= self._begin(rows, tasks, starts, split)
                    progress.advance(len(rows))
        texts, self._text = table_of([task.instructions[0] for task in tasks])
        return Starts(self._observation([moments[row] for row in range(len(tasks))]), texts)

    def step(self, action: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Carry out one action [E, A]; the new observation, and whether each task was done [E] bool."""
        seen, done = self.carry_out(np.asarray(action)[:, None])
        return seen, done[:, 0]

    def carry_out(self, actions: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Carry out a chunk of actions [E, K, A]; the observation after the last, whether tasks were done [E, K].

        It draws one picture per view and chunk, where `step` draws K. Raises UserError for another shape, if no
        episodes are held, or if a scene fails again and again.
        """
        held = self._going_on()
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 3 or actions.shape[::2] != (len(held), self.robot.action_size) or not actions.size:
            want = f"[{len(held)}, K, {self.robot.action_size}]"
            raise UserError(f"actions has shape {list(actions.shape)}; it should be {want}")
        if not np.isfinite(actions).all():
            raise UserError("actions has numbers that are not finite")
        moments = self._act(held, np.repeat(actions.clip(-1, 1), self.repeat, axis=1))
        seen = self._observation([moments[row] for row in range(len(moments))])
        done = np.stack([moments[row].done for row in range(len(moments))])
        return seen, done.reshape(*actions.shape[:2], self.repeat).any(2)

    def ask(
        self,
        request: str,  # the name of a method of the simulator that begins an episode
        episodes: Sequence[tuple[str, int, str]],  # name of the task, start state, split
        given: Sequence[tuple],  # for each episode, the further arguments of the method
        progress: Progress | None = None,  # advances by one for each episode
    ) -> list[Any]:
        """The answers of the simulators to a request, one for each episode. Episodes begun by `reset` cannot go on.

        A simulator gets its next episode as soon as it has answered, and those of one scene one after the other.
        Raises UserError as `checked` does, and if a simulator fails three times.
        """
        self._held, out = None, {}
        episodes = [(self._task(self.known.get(name, name)), start, split) for name, start, split in episodes]
        asked = [self._episode(*episode) for episode in episodes]
        waiting: dict[tuple, list[int]] = {}  # rows of the episodes, by scene
        for row, (scene, _) in enumerate(asked):
            waiting.setdefault(scene, []).append(row)
        free, busy = list(self._actors), {}
        while waiting or busy:
            while free and waiting:
                actor = free.pop()
                row = self._next(waiting, actor)
                scene, start = asked[row]
                actor.perform(scene, request, *start, *given[row])
                busy[actor.process.connection] = actor, row
            for connection in wait(list(busy), actor.timeout_s) or list(busy)[:1]:  # none in time: it is replaced
                actor, row = busy.pop(connection)
                out[row] = actor.answer()
                free.append(actor)
                if progress is not None:
                    progress.advance(1)
        return [out[row] for row in range(len(episodes))]

    def _next(self, waiting: dict[tuple, list[int]], actor: Actor) -> int:
        """Take a row for a free actor: of the scene that it has built, else of one that no actor has built."""
        built = {other.scene for other in self._actors}
        most = max(waiting, key=lambda scene: (scene not in built, len(waiting[scene])))
        scene = actor.scene if actor.scene in waiting else most
        row = waiting[scene].pop(0)
        if not waiting[scene]:
            del waiting[scene]
        return row

    def checked(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> tuple[list[Any], list[int]]:
        """The tasks of this suite, and the numbers of the start states.

        Raises UserError for an unknown task or split, or if there are not as many of both.
        """
        if split not in SPLITS:
            raise UserError(f"split is {shown(split)}; it should be one of {', '.join(SPLITS)}")
        tasks, starts = [self._task(task) for task in tasks], [_number(start) for start in starts]
        if not tasks or len(tasks) != len(starts):
            raise UserError(f"there are {len(tasks)} tasks and {len(starts)} start states; each task needs one")
        return tasks, starts

    def _going_on(self) -> list[int]:
        if self._held is None:
            raise UserError(
                f"there are no episodes to step: begin at most {self.most} at once with `reset`; `groups` says which"
            )
        return self._held

    def _task(self, task: Any) -> Any:
        found = self.known.get(getattr(task, "name", None))
        if found is None:
            raise UserError(f"{shown(task)} is no task of {self.name}; take some of its `tasks`")
        return found

    def _observation(self, moments: list[Moment]) -> Observation:
        frames, proprio, camera = (
            torch.from_numpy(np.stack([getattr(moment, name) for moment in moments]))
            for name in ("frames", "proprio", "camera")
        )
        return Observation(frames, proprio, camera, self._text)


def drawn_from(split: str, number: int) -> np.random.SeedSequence:
    """What the start state of that number is drawn from: the splits share none."""
    return np.random.SeedSequence([SPLITS.index(split), number % 2**64])


def count(name: str, value: Any) -> int:
    """A positive integer. Raises UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} is {shown(value)}; it should be a positive integer")
    return int(value)


def check_views(views: Any, known: Sequence[str], who: str) -> tuple[str, ...]:
    """The views as a tuple. Raises UserError unless they are some of those that are known, none twice."""
    if not isinstance(views, list | tuple) or not views or any(views.count(view) > 1 for view in views):
        raise UserError(f"views is {shown(views)}; it should be a tuple of some of {', '.join(known)}")
    if any(view not in known for view in views):
        raise UserError(f"views is {shown(views)}; {who} has {', '.join(known)}")
    return tuple(views)


def _number(start: Any) -> int:
    try:
        return index(start)
    except TypeError:
        raise UserError(f"a start state is {shown(start)}; it should be an integer") from None
