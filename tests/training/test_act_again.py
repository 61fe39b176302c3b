"""Episodes that are acted again: the same actions, a little beside."""

import numpy as np
import pytest

from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training.act_again import act_again

SUITE = TabletopSuite(16)


@pytest.fixture(scope="module")
def shown():
    shown = demonstrate(TASKS, [0] * len(TASKS), "train", image_size=16)
    length = min(len(t.actions) for t in shown)
    return [t for t in shown if len(t.actions) == length] + [t for t in shown if len(t.actions) == length]


def test_without_noise_the_episode_is_the_same(shown):
    for before, after in zip(shown, act_again(shown, np.zeros(len(shown)), 0, SUITE), strict=True):
        assert np.array_equal(before.frames, after.frames) and np.array_equal(before.success, after.success)
        assert np.array_equal(before.proprio, after.proprio) and np.array_equal(before.actions, after.actions)
        names = ("instruction", "task", "start", "split", "source")
        assert all(getattr(before, name) == getattr(after, name) for name in names)


def test_noise_moves_the_gripper_and_nothing_but_its_translation(shown):
    given = [t.actions.copy() for t in shown]
    again = act_again(shown, np.linspace(0, 0.2, len(shown)), 3, SUITE)
    assert all(np.array_equal(t.actions, actions) for t, actions in zip(shown, given, strict=True))
    assert np.array_equal(again[0].actions, shown[0].actions)  # each has its own scale
    for before, after in list(zip(shown, again, strict=True))[1:]:
        assert np.array_equal(before.actions[:, 3:], after.actions[:, 3:])
        assert not np.isclose(before.actions[:, :3], after.actions[:, :3]).all() and np.abs(after.actions).max() <= 1
        assert not np.allclose(before.proprio[1:, :3], after.proprio[1:, :3], atol=1e-3)


def test_noise_makes_some_successes_fail_and_depends_on_the_seed():
    shown = [demonstrate([TASKS[0]], [i], "train", image_size=16)[0] for i in range(6)]
    outcomes = [act_again([t], np.array([0.15]), seed, SUITE)[0] for t in shown for seed in (1, 2)]
    ended = [bool(t.success.any()) for t in outcomes]
    assert any(ended) and not all(ended)
    assert not np.array_equal(outcomes[0].actions, outcomes[1].actions)
