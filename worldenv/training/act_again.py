"""Recorded actions carried out again with a little noise: episodes in which the same plan may end differently."""

from collections.abc import Sequence

import numpy as np

from worldenv.data.record import Record
from worldenv.data.trajectory import Trajectory
from worldenv.evaluation.truth import groups_of, in_order
from worldenv.interfaces.suite import Suite
from worldenv.launch.ranks import ALONE, Ranks


def act_again(
    trajectories: Sequence[Trajectory],  # of one length, one split and one source
    scale: np.ndarray,  # [N] float, of the Laplace noise, in units of the action
    seed: int,
    suite: Suite,
    ranks: Ranks = ALONE,
) -> list[Trajectory]:
    """The actions of these episodes from the same start states, with noise on the translation that nobody corrects.

    Several ranks share the episodes: rank 0 returns all, the others nothing.

    A policy closes and lifts the gripper when it sees that the gripper stands right. So in its own episodes the plan
    gives the outcome away, and a world model trained on them learns to read the plan instead of the picture: a gripper
    that closes beside an object, and goes on as if it had it, takes the object along. Here the gripper drifts
    and the plan stays, and a grasp or a push succeeds or fails by where the fingers are.
    """
    random = np.random.default_rng(seed)
    actions = np.stack([t.actions for t in trajectories])
    noise = random.laplace(size=(*actions.shape[:2], 3)) * scale[:, None, None]
    actions[..., :3] = np.clip(actions[..., :3] + noise, -1, 1)
    task_of, split = {task.name: task for task in suite.tasks}, trajectories[0].split
    tasks, again = [task_of[t.task] for t in trajectories], {}
    for rows in groups_of(suite, tasks, ranks):
        some, starts = [tasks[row] for row in rows], [trajectories[row].start for row in rows]
        record = Record(suite, suite.reset(some, starts, split))
        for step in range(actions.shape[1]):
            record.step(actions[rows, step])
        made = record.trajectories(some, starts, split, trajectories[0].source)
        again |= zip(rows, made, strict=True)
    return in_order(again, ranks)
