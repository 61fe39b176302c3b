"""Episodes of Meta-World's scripted experts: shown a little beside, and disturbed ones to pretrain on."""

from collections.abc import Sequence

import numpy as np

from worldenv.data.disturbed import Disturbed
from worldenv.data.record import Record
from worldenv.data.trajectory import Trajectory
from worldenv.suites.held import SPLITS
from worldenv.suites.metaworld.suite import MetaWorldSuite
from worldenv.suites.metaworld.tasks import PRETRAINING, MetaWorldTask

_AFTER_SUCCESS = 2  # actions recorded after success, so that the end of a task can be seen
_NOISE = 0.15  # largest scale of the Laplace noise on what is carried out, in units of the action
_SHAKE, _ASTRAY, _HOLD = 0.3, 0.06, 4  # of disturbed episodes: scale of the noise; how often, and how long, anything
_MIDDLE_M = np.array([0.0, 0.7, 0.1] * 2, dtype=np.float32)  # of the table


def demonstrate(
    suite: MetaWorldSuite, tasks: Sequence[MetaWorldTask], starts: Sequence[int], split: str
) -> list[Trajectory]:
    """One expert episode for each (task, start), cut shortly after success; episodes that fail are left out.

    What is carried out has noise, of another scale in every episode; what is recorded is what the expert wanted.
    """
    shown = {}
    for rows in suite.groups(tasks):
        some, numbers = [tasks[row] for row in rows], [starts[row] for row in rows]
        record = Record(suite, suite.reset(some, numbers, split))
        random = np.random.default_rng([SPLITS.index(split), *(number % 2**64 for number in numbers)])
        scale = _NOISE * random.random((len(rows), 1))
        for _ in range(suite.horizon):
            wanted = suite.expert_actions()
            record.step(wanted, _shaken(wanted, scale, random))
        success = np.stack(record.success, axis=1)
        ends = np.minimum(success.argmax(1) + 1 + _AFTER_SUCCESS, suite.horizon)
        lengths = np.where(success.any(1), ends, 0).tolist()
        made = record.trajectories(some, numbers, split, "expert", lengths)
        shown |= zip((row for row, length in zip(rows, lengths, strict=True) if length), made, strict=True)
    return [shown[row] for row in sorted(shown)]


def disturb(episodes: int, seed: int, chunk: int = 4, like: MetaWorldSuite | None = None) -> Disturbed:
    """Episodes of the experts of other tasks, with noise, and now and then an action that is held and leads astray.

    The plan from a state are the actions that the expert wants from then on, along the disturbed way.
    """
    like = like or MetaWorldSuite()
    names = PRETRAINING[: max(1, min(episodes, len(PRETRAINING)))]
    suite = MetaWorldSuite(like.name, names, like.size, like.views, like.repeat, like.horizon, like.most)
    tasks = [suite.tasks[i % len(names)] for i in range(episodes)]
    parts = {}
    for rows in suite.groups(tasks):
        made = _disturbed(suite, [tasks[row] for row in rows], [seed * 1_000_000 + row for row in rows], chunk)
        parts |= zip(rows, zip(*made, strict=True), strict=True)
    suite.close()
    arrays = [np.stack(part) for part in zip(*(parts[row] for row in range(episodes)), strict=True)]
    return Disturbed(*arrays, None, tuple(task.instructions[0] for task in tasks))


def _disturbed(
    suite: MetaWorldSuite, tasks: list[MetaWorldTask], starts: list[int], chunk: int
) -> tuple[np.ndarray, ...]:
    """frames, proprio, actions, plans, success and place, as of `Disturbed`."""
    random = np.random.default_rng([number % 2**64 for number in starts])
    record = Record(suite, suite.reset(tasks, starts, "train"))
    scale, wishes, place = _SHAKE * random.random((len(tasks), 1)), [], [suite.places()]
    for step in range(suite.horizon):
        if step % _HOLD == 0:
            astray, elsewhere = random.random((len(tasks), 1)) < _ASTRAY, random.uniform(-1, 1, (len(tasks), 4))
        wishes.append(suite.expert_actions())
        record.step(np.where(astray, elsewhere, _shaken(wishes[-1], scale, random)).astype(np.float32))
        place.append(suite.places())
    frames, proprio, actions, success = record.stacked()
    wishes = np.stack(wishes, axis=1)
    ahead = np.minimum(np.arange(suite.horizon)[:, None] + np.arange(chunk), suite.horizon - 1)
    success = np.concatenate([np.zeros_like(success[:, :1]), success], axis=1)
    return frames[:, :, 0], proprio, actions, wishes[:, ahead], success, np.stack(place, axis=1) - _MIDDLE_M


def _shaken(wanted: np.ndarray, scale: np.ndarray, random: np.random.Generator) -> np.ndarray:  # [E, 4] float32
    """With noise on the translation."""
    noise = random.laplace(size=(len(wanted), 3)) * scale
    return np.concatenate([np.clip(wanted[:, :3] + noise, -1, 1), wanted[:, 3:]], axis=1).astype(np.float32)
