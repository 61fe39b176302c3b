import numpy as np
import pytest

from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.physics import HORIZON, Tabletop
from worldenv.suites.tabletop.scenes import FAMILIES, TASKS, pretraining_task


def solved(tasks, starts, split):  # [E] bool: succeeded at any time within the horizon
    env = Tabletop(16, threads=1)
    env.reset(tasks, starts, split)
    done = env.success()
    for _ in range(HORIZON):
        action = expert_action(env)
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        done |= env.step(action, ~done)
    return done


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_expert_solves_every_task(task):
    assert solved([task] * 40, range(40), "test").mean() >= 0.95


def test_expert_solves_the_pretraining_tasks_of_every_family():
    tasks = [pretraining_task(i) for i in range(400)]
    done = solved(tasks, range(400), "train")
    for family in FAMILIES:
        assert done[[task.family == family for task in tasks]].mean() >= 0.95


def test_success_lasts_when_the_expert_goes_on():
    env = Tabletop(16, threads=1)
    env.reset([task for task in TASKS for _ in range(5)], [*range(5)] * 10, "validation")
    for _ in range(HORIZON + 10):
        last = env.step(expert_action(env))
    assert last.mean() >= 0.95


def test_expert_depends_on_the_present_state_alone():
    env = Tabletop(16, threads=1)
    env.reset(TASKS, range(10), "train")
    for _ in range(8):
        env.step(expert_action(env))
    once, other = expert_action(env), Tabletop(16, threads=1)
    other.reset(TASKS, range(50, 60), "test")
    other.restore(env.state())
    assert np.array_equal(expert_action(other), once)
    assert np.array_equal(expert_action(env), once)
