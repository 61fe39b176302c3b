"""Expert episodes: clean ones that replay to the same success, disturbed ones with the expert's own opinion."""

import numpy as np
import pytest

from worldenv.suites.tabletop.demonstrate import demonstrate, disturb
from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.physics import HORIZON, Tabletop
from worldenv.suites.tabletop.scenes import TASKS, pretraining_task


@pytest.fixture(scope="module")
def shown():
    return demonstrate(TASKS[:4], range(4), "train", image_size=16)


def test_demonstrations_end_shortly_after_success(shown):
    assert len(shown) >= 3
    for trajectory in shown:
        first = int(trajectory.success.argmax())
        assert trajectory.success.any() and len(trajectory.actions) == min(first + 3, HORIZON)
        assert trajectory.source == "expert" and trajectory.split == "train"


def test_demonstrations_replay_to_the_same_frames_and_success(shown):
    task = next(task for task in TASKS if task.name == shown[1].task)
    env = Tabletop(16, threads=1)
    env.reset([task], [shown[1].start], "train")
    assert env.instructions[0] == shown[1].instruction and np.array_equal(env.frames()[0], shown[1].frames[0, 0])
    for t, action in enumerate(shown[1].actions):
        assert env.step(action[None])[0] == shown[1].success[t]
        assert np.array_equal(env.frames()[0], shown[1].frames[t + 1, 0])
        assert np.allclose(env.proprio()[0], shown[1].proprio[t + 1])


def test_episodes_that_fail_are_left_out(monkeypatch):
    from worldenv.suites.tabletop import demonstrate as module

    monkeypatch.setattr(module, "expert_action", lambda env: np.zeros((len(env), 7), dtype=np.float32))
    assert module.demonstrate(TASKS[:2], [0, 1], "train", image_size=16) == []


def test_plans_are_what_the_undisturbed_expert_does_from_the_state_that_was_reached():
    task = pretraining_task(5)
    data = disturb([task], seed=1, chunk=3, steps=4, image_size=16)
    assert data.plans.shape == (1, 4, 3, 7) and data.frames.shape == (1, 5, 16, 16, 3) and data.place.shape == (1, 5, 6)
    env = Tabletop(16, threads=1)
    env.reset([task], [0], "train")
    for k in range(3):
        action = expert_action(env)
        assert np.array_equal(action[0], data.plans[0, 0, k])
        env.step(action)


def test_places_are_those_of_the_object_and_the_goal_in_the_first_frame():
    task = pretraining_task(5)
    data = disturb([task], seed=1, steps=1, image_size=16)
    env = Tabletop(16, threads=1)
    env.reset([task], [0], "train")
    entity = env.state()[0, 15:].reshape(-1, 8)
    assert np.allclose(data.place[0, 0], np.concatenate([entity[task.object, 2:5], entity[task.goal, 2:5]]))


def test_disturbed_episodes_hold_successes_and_failures_and_follow_their_seed():
    tasks = [pretraining_task(i) for i in range(40)]
    data, again = (disturb(tasks, seed=0, image_size=16) for _ in range(2))
    done = data.success.any(1)
    assert 0.1 < done.mean() < 0.95
    assert np.array_equal(data.frames, again.frames)
    assert not np.array_equal(data.frames, disturb(tasks, seed=1, image_size=16).frames)
