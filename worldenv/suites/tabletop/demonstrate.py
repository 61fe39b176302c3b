"""Expert episodes in the true environment: clean ones to learn from, disturbed ones for the pretraining suite."""

from collections.abc import Sequence

import numpy as np

from worldenv.data.disturbed import Disturbed
from worldenv.data.record import Record
from worldenv.data.trajectory import Trajectory
from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import Task
from worldenv.suites.tabletop.suite import TabletopSuite

_AFTER_SUCCESS = 2  # steps recorded after success, so that the end of a task can be seen


def demonstrate(tasks: Sequence[Task], starts: Sequence[int], split: str, image_size: int = 64) -> list[Trajectory]:
    """One expert episode for each (task, start), cut shortly after success; episodes that fail are left out."""
    suite = TabletopSuite(image_size)
    record = Record(suite, suite.reset(tasks, starts, split))
    for _ in range(suite.horizon):
        record.step(expert_action(suite.physics))
    success = np.stack(record.success, axis=1)
    ends = np.minimum(success.argmax(1) + 1 + _AFTER_SUCCESS, suite.horizon)
    return record.trajectories(tasks, starts, split, "expert", np.where(success.any(1), ends, 0).tolist())


def disturb(tasks: Sequence[Task], seed: int, chunk: int = 4, steps: int = 32, image_size: int = 64) -> Disturbed:
    """Episodes of an expert with noise, bias, wrong targets and fumbled grasps: successes, failures and recoveries."""
    random = np.random.default_rng(seed)
    suite = TabletopSuite(image_size)
    record, env = Record(suite, suite.reset(tasks, [0] * len(tasks), "train")), suite.physics
    plans, place, states, n = [], [_places(env)], [env.state()], len(tasks)
    before = env.success()
    shake = random.uniform(0.02, 0.3, (n, 1)) * np.array([1, 1, 1, 0.5, 0.5, 0.5, 0])
    bias = random.normal(size=(n, 7)) * 0.12 * (random.random((n, 1)) < 0.4) * np.array([1, 1, 1, 0, 0, 0, 0])
    for step in range(steps):
        if step % 4 == 0:
            fumble, astray = random.random(n) < 0.03, random.random((n, 1)) < 0.06
            elsewhere = random.uniform(-1, 1, (n, 7))
        plan = _plan(env, chunk)
        wanted = plan[:, 0]
        action = wanted + random.laplace(size=wanted.shape) * shake + bias
        action[:, 6] *= np.where(fumble, -1, 1)
        action = np.clip(np.where(astray, elsewhere, action), -1, 1).astype(np.float32)
        plans.append(plan)
        record.step(action)
        place.append(_places(env))
        states.append(env.state())
    frames, proprio, actions, success = record.stacked()
    success = np.concatenate([before[:, None], success], axis=1)
    plans, place = np.stack(plans, axis=1), np.stack(place, axis=1)
    states = np.stack(states, axis=1)
    return Disturbed(frames[:, :, 0], proprio, actions, plans, success, place, states, tuple(env.instructions))


def _plan(env: Tabletop, chunk: int) -> np.ndarray:  # [N, K, 7] float32
    before = env.state()
    plan = []
    for _ in range(chunk):
        plan.append(expert_action(env))
        env.step(plan[-1])
    env.restore(before)
    return np.stack(plan, axis=1)


def _places(env: Tabletop) -> np.ndarray:  # [N, 6] float32
    state = env.state()
    entities = state[:, 15:].reshape(len(state), -1, 8)
    which = state[:, 13:15].astype(int)
    return np.concatenate([entities[np.arange(len(state)), which[:, k], 2:5] for k in (0, 1)], axis=1).astype(
        np.float32
    )
