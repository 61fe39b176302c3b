"""Recorded actions acted out again, a little beside: episodes in which the same plan ends otherwise."""

from collections.abc import Sequence

import numpy as np

from worldenv.data.record import Record
from worldenv.data.trajectory import Trajectory
from worldenv.suites.tabletop.physics import task_by_name
from worldenv.suites.tabletop.suite import TabletopSuite


def act_again(
    trajectories: Sequence[Trajectory],  # of one length, one split and one source
    scale: np.ndarray,  # [N] float, of the Laplace noise, in units of the action
    seed: int,
) -> list[Trajectory]:
    """The actions of these episodes from the same start states, with noise on the translation that nobody corrects.

    A policy closes and lifts the gripper when it sees that the gripper stands right. So in its own episodes the plan
    gives the outcome away, and a world model trained on them learns to read the plan instead of the picture: a gripper
    that closes beside an object, and goes on as if it had it, takes the object along. Here the gripper drifts
    and the plan stays, and a grasp or a push succeeds or fails by where the fingers are.
    """
    random = np.random.default_rng(seed)
    actions = np.stack([t.actions for t in trajectories])
    noise = random.laplace(size=(*actions.shape[:2], 3)) * scale[:, None, None]
    actions[..., :3] = np.clip(actions[..., :3] + noise, -1, 1)
    suite = TabletopSuite(trajectories[0].frames.shape[2])
    tasks, starts, split = (
        [task_by_name(t.task) for t in trajectories],
        [t.start for t in trajectories],
        trajectories[0].split,
    )
    record = Record(suite, suite.reset(tasks, starts, split))
    for step in range(actions.shape[1]):
        record.step(actions[:, step])
    return record.trajectories(tasks, starts, split, trajectories[0].source)
