"""Expert episodes in the true environment: clean ones to learn from, disturbed ones for the pretraining suite."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldenv.data.trajectories import Trajectory
from worldenv.tasks.expert import expert_action
from worldenv.tasks.scenes import Task
from worldenv.tasks.tabletop import HORIZON, Tabletop

_AFTER_SUCCESS = 2  # steps recorded after success, so that the end of a task can be seen


def demonstrate(tasks: Sequence[Task], starts: Sequence[int], split: str, image_size: int = 64) -> list[Trajectory]:
    """One expert episode for each (task, start), cut shortly after success; episodes that fail are left out."""
    env = Tabletop(image_size)
    env.reset(tasks, starts, split)
    record = _Record(env)
    for _ in range(HORIZON):
        action = expert_action(env)
        record.add(action, env.step(action))
    out = []
    for i, first in enumerate(record.first_success()):
        if first < 0:
            continue
        n = min(first + 1 + _AFTER_SUCCESS, HORIZON)
        frames, proprio, actions, success = record.episode(i, n)
        name, start = tasks[i].name, int(starts[i])
        out.append(Trajectory(frames, proprio, actions, success, env.instructions[i], name, start, split, "expert"))
    return out


@dataclass(frozen=True)
class Disturbed:
    """Episodes of a disturbed expert, with what it would have done and where the things that matter are."""

    frames: np.ndarray  # [N, T + 1, H, W, 3] uint8
    proprio: np.ndarray  # [N, T + 1, 7] float32
    plans: np.ndarray  # [N, T, K, 7] float32, what the undisturbed expert would do next in the state that was reached
    success: np.ndarray  # [N, T + 1] bool
    place: np.ndarray  # [N, T + 1, 6] float32, metres: xyz of the object, xyz of the goal
    instructions: tuple[str, ...]


def disturb(tasks: Sequence[Task], seed: int, chunk: int = 4, steps: int = 32, image_size: int = 64) -> Disturbed:
    """Episodes of an expert that is shaken, biased, led astray and made to fumble: successes, failures, recoveries."""
    random = np.random.default_rng(seed)
    env = Tabletop(image_size)
    env.reset(tasks, [0] * len(tasks), "train")
    record = _Record(env)
    n = len(tasks)
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
        record.add(plan, env.step(action))
    stack = [np.stack(part, axis=1) for part in (record.frames, record.proprio, record.actions, record.success)]
    return Disturbed(*stack, np.stack(record.place, axis=1), tuple(env.instructions))


def _plan(env: Tabletop, chunk: int) -> np.ndarray:  # [N, K, 7] float32
    before = env.state()
    plan = []
    for _ in range(chunk):
        plan.append(expert_action(env))
        env.step(plan[-1])
    env.restore(before)
    return np.stack(plan, axis=1)


class _Record:
    def __init__(self, env: Tabletop):
        self.env = env
        self.frames, self.proprio = [env.frames()], [env.proprio()]
        self.actions: list[np.ndarray] = []
        self.success, self.place = [env.success()], [_places(env)]

    def add(self, action: np.ndarray, success: np.ndarray) -> None:
        self.actions.append(action)
        self.success.append(success)
        self.frames.append(self.env.frames())
        self.proprio.append(self.env.proprio())
        self.place.append(_places(self.env))

    def first_success(self) -> np.ndarray:  # [N] step index, -1 if none
        success = np.stack(self.success[1:], axis=1)
        return np.where(success.any(1), success.argmax(1), -1)

    def episode(self, i: int, n: int) -> tuple[np.ndarray, ...]:
        parts = (self.frames[: n + 1], self.proprio[: n + 1], self.actions[:n], self.success[1 : n + 1])
        return tuple(np.stack([row[i] for row in part]) for part in parts)


def _places(env: Tabletop) -> np.ndarray:  # [N, 6] float32
    state = env.state()
    entities = state[:, 15:].reshape(len(state), -1, 8)
    which = state[:, 13:15].astype(int)
    return np.concatenate([entities[np.arange(len(state)), which[:, k], 2:5] for k in (0, 1)], axis=1).astype(
        np.float32
    )
