"""The three stopping rules, the figures made of them, and episodes in the true environment."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch

from worldenv.data.trajectories import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation import truth
from worldenv.evaluation.truth import (
    act_in_true,
    device_of,
    judge_frames,
    judge_outcome,
    judge_trajectories,
    starts_of,
    steps_to_success,
)
from worldenv.interfaces.observation import Observation
from worldenv.records.intervals import wilson_interval
from worldenv.records.progress import Progress
from worldenv.suites.tabletop.physics import HORIZON
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite


def recorded(success, task="stack"):
    n = len(success)
    return Trajectory(
        frames=np.zeros((n + 1, 1, 8, 8, 3), np.uint8),
        proprio=np.zeros((n + 1, 7), np.float32),
        actions=np.zeros((n, 7), np.float32),
        success=np.array(success, bool),
        instruction="put it",
        task=task,
        start=0,
        split="test",
        source="policy",
        camera=None,
        views=("agentview",),
    )


#   success by step     reward by step             oracle  own    none   stop stopped
CASES = [
    ([0, 1, 1, 1], [0.1, 0.2, 0.9, 0.1], True, True, True, 3, True),  # seen in time
    ([0, 1, 0, 0], [0.1, 0.9, 0.9, 0.9], True, True, False, 2, True),  # stopped before it was undone
    ([0, 1, 0, 0], [0.1, 0.1, 0.6, 0.9], True, False, False, 3, True),  # stopped too late
    ([0, 0, 1, 1], [0.7, 0.1, 0.1, 0.1], True, False, True, 1, True),  # stopped too early
    ([0, 1, 1, 0], [0.1, 0.5, 0.5, 0.5], True, False, False, 4, False),  # at the threshold is not over it
    ([0, 0, 0, 1], [0.1, 0.1, 0.1, 0.1], True, True, True, 4, False),  # never stopped, the horizon counts
    ([0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1], False, False, False, 4, False),
    ([0, 0, 0, 0], [0.1, 0.1, 0.1, 0.8], False, False, False, 4, True),
]


@pytest.fixture
def outcome():
    trajectories = [recorded(case[0], "stack" if i < 5 else "push") for i, case in enumerate(CASES)]
    reward = np.array([case[1] for case in CASES], np.float32)
    return judge_outcome(trajectories, reward, reward > 0.5)


def test_three_stopping_rules(outcome):
    for rule, column in (("oracle", 2), ("own_stop", 3), ("no_stop", 4)):
        assert outcome.success[rule].tolist() == [case[column] for case in CASES], rule
    assert outcome.stop.tolist() == [case[5] for case in CASES]
    assert outcome.stopped.tolist() == [case[6] for case in CASES]


def test_false_stops_count_among_all_and_missed_ones_among_the_successes(outcome):
    assert outcome.false_stop == 3 / 8  # too late, too early, and in a failure
    assert outcome.missed_stop == 2 / 6


def test_missed_stop_of_no_success_is_zero():
    reward = np.zeros((1, 2), np.float32)
    assert judge_outcome([recorded([0, 0])], reward, reward > 0.5).missed_stop == 0


def test_outcome_is_stopped_where_the_reflector_says_so_whatever_the_reward():
    reward = np.array([[0.9, 0.9, 0.9]], np.float32)
    late = judge_outcome([recorded([0, 0, 1])], reward, np.array([[False, False, True]]))
    assert late.stop.tolist() == [3] and late.success["own_stop"].all() and late.reward is reward


def test_document_has_rates_and_wilson_intervals_over_all_and_by_task(outcome):
    document = outcome.document({"push": "push it there"})
    assert document["n"] == 8 and document["oracle"] == 6 / 8 and document["own_stop"] == 3 / 8
    assert document["intervals"]["own_stop"] == list(wilson_interval(3, 8))
    push = document["per_task"]["push"]
    assert sorted(document["per_task"]) == ["push", "stack"] and push["instruction"] == "push it there"
    assert push["n"] == 3 and push["oracle"] == pytest.approx(1 / 3)
    assert push["intervals"]["no_stop"] == list(wilson_interval(1, 3))
    assert document["per_task"]["stack"]["intervals"]["oracle"] == list(wilson_interval(5, 5))


@pytest.fixture(scope="module")
def suite():
    return TabletopSuite(16)


def test_true_episodes_run_to_the_horizon_and_repeat(tiny, suite):
    policy = tiny.policy()
    tasks, starts = [TASKS[0], TASKS[7], TASKS[3]], [4, 5, 6]
    first, again = (act_in_true(policy, suite, tasks, starts, "test") for _ in range(2))
    for a, b, task, start in zip(first, again, tasks, starts, strict=True):
        assert len(a.actions) == HORIZON and (a.task, a.start, a.split) == (task.name, start, "test")
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        begun = suite.reset([task], [start], "test")
        assert np.array_equal(begun.seen.frames[0].numpy(), a.frames[0]) and begun.instructions == [a.instruction]
        assert np.array_equal(begun.seen.proprio[0].numpy(), a.proprio[0])
        assert np.array_equal(begun.seen.camera[0].numpy(), a.camera) and a.views == suite.views
        text = torch.zeros(2, dtype=torch.int64)
        with torch.no_grad():
            seen = Observation(*(torch.from_numpy(x[[0, 8]]) for x in (a.frames, a.proprio)), None, text)
            mu, _ = policy.heads(policy.see(seen, policy.read(begun.texts)), seen.proprio)
        torch.testing.assert_close(torch.from_numpy(a.actions[:4]), mu[0].clamp(-1, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(a.actions[8:12]), mu[1].clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_recorded_frames_and_success_are_those_of_the_recorded_actions(tiny, suite):
    (trajectory,) = act_in_true(tiny.policy(), suite, [TASKS[3]], [6], "test")
    suite.reset([TASKS[3]], [6], "test")
    for t, action in enumerate(trajectory.actions):
        seen, success = suite.step(action[None])
        assert np.array_equal(seen.frames[0].numpy(), trajectory.frames[t + 1])
        assert (
            np.array_equal(seen.proprio[0].numpy(), trajectory.proprio[t + 1]) and success[0] == trajectory.success[t]
        )


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_that_do_not_fit_the_horizon_are_cut(tiny, suite, chunk):
    (trajectory,) = act_in_true(tiny.policy(chunk=chunk), suite, [TASKS[0]], [4], "test")
    assert len(trajectory.actions) == HORIZON


def test_policy_acts_in_parts_as_it_acts_at_once(tiny, suite, monkeypatch):
    given = tiny.policy(), suite, [TASKS[0], TASKS[7], TASKS[3]], [4, 5, 6], "train", 1.0
    whole = act_in_true(*given)
    monkeypatch.setattr(truth, "POLICY_BATCH", 2)
    for one, other in zip(act_in_true(*given), whole, strict=True):
        assert np.allclose(one.actions[:4], other.actions[:4], atol=1e-4)


def test_perturbation_shakes_the_actions_by_its_seed(tiny, suite):
    def act(perturb, seed):
        return act_in_true(tiny.policy(), suite, [TASKS[0]], [4], "train", perturb, seed)[0].actions

    mean, once, twice, other = act(0, 0), act(1.0, 0), act(2.0, 0), act(1.0, 1)
    assert not np.array_equal(once, other) and np.array_equal(once, act(1.0, 0))
    inside = np.abs(twice[:4]) < 1
    assert np.allclose((twice - mean)[:4][inside], 2 * (once - mean)[:4][inside], atol=1e-5)


def test_each_episode_may_be_perturbed_by_its_own_scale(tiny, suite):
    def act(perturb):
        return act_in_true(tiny.policy(), suite, [TASKS[0]] * 2, [4, 4], "train", perturb, 7)

    none, both = act(0.0), act(torch.tensor([0.0, 1.5]))
    assert np.allclose(both[0].actions, none[0].actions)
    assert not np.allclose(both[1].actions, none[1].actions)


class Grouped:
    """The suite, as if it could hold two episodes at a time, those with the largest rows first."""

    def __init__(self, suite, groups=None):
        self.inner, self.wrong, self.begun = suite, groups, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def groups(self, tasks):
        rows = list(range(len(tasks)))[::-1]
        return [rows[i : i + 2] for i in range(0, len(rows), 2)] if self.wrong is None else self.wrong

    def reset(self, tasks, starts, split):
        self.begun.append(len(tasks))
        return self.inner.reset(tasks, starts, split)


@pytest.mark.parametrize("perturb", [0.0, 1.0, torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])])
def test_groups_of_episodes_act_as_all_do_at_once(tiny, suite, perturb):
    given = [TASKS[0], TASKS[7], TASKS[3], TASKS[0], TASKS[1]], [4, 5, 6, 7, 8], "train", perturb, 5
    grouped = Grouped(suite)
    with Progress(3, "groups", stream=StringIO()) as progress:
        mine = act_in_true(tiny.policy(), grouped, *given, progress=progress)
    assert grouped.begun == [2, 2, 1] and progress.done == 3
    for one, whole in zip(mine, act_in_true(tiny.policy(), suite, *given), strict=True):
        assert (one.task, one.start, one.instruction) == (whole.task, whole.start, whole.instruction)
        assert np.allclose(one.actions[:4], whole.actions[:4], atol=1e-4)


@pytest.mark.parametrize("groups", [[[0], [0]], [[0]], [[0, 1], []], [[0, 1, 2]]])
def test_groups_that_do_not_hold_every_episode_once_are_refused(tiny, suite, groups):
    with pytest.raises(UserError, match="the suite's `groups` returned .*each of 2 rows should be in one"):
        act_in_true(tiny.policy(), Grouped(suite, groups), TASKS[:2], [4, 5], "test")


class Counting(Grouped):
    """Done after as many actions as the number of the start state says; one that can carry out chunks, or not."""

    def reset(self, tasks, starts, split):
        self.left = np.array(starts)
        self.stepped = 0
        return super().reset(tasks, starts, split)

    def step(self, action):
        seen, _ = self.inner.step(action)
        self.left = self.left - 1
        self.stepped += 1
        return seen, self.left == 0


class Chunked(Counting):
    def carry_out(self, actions):
        steps = [self.step(actions[:, k]) for k in range(actions.shape[1])]
        return steps[-1][0], np.stack([done for _, done in steps], axis=1)


@pytest.mark.parametrize("kind", [Counting, Chunked])
@pytest.mark.parametrize("chunk", [3, 4])
def test_steps_to_success_are_counted_and_the_rest_is_not_acted(tiny, suite, kind, chunk):
    starts = [1, 9, HORIZON, HORIZON + 1, 6]
    counting = kind(suite)
    steps = steps_to_success(tiny.policy(chunk=chunk), counting, TASKS[:5], starts, "test")
    assert steps.tolist() == [1, 9, HORIZON, 0, 6]
    steps_to_success(tiny.policy(chunk=chunk), counting, TASKS[:2], [2, 7], "test")
    assert counting.stepped == -(-7 // chunk) * chunk


def test_steps_to_success_are_the_oracle_stop_of_the_recorded_episodes(tiny, suite):
    given = tiny.policy(), suite, TASKS * 3, list(range(30)), "test"
    recorded = [t.success.argmax() + 1 if t.success.any() else 0 for t in act_in_true(*given)]
    assert steps_to_success(*given).tolist() == recorded


def test_judged_rewards_do_not_depend_on_the_batch(tiny, monkeypatch):
    trajectories = [tiny.trajectory(20, i) for i in range(5)]
    reward, stop = judge_trajectories(tiny.reflector(), trajectories)
    assert reward.shape == stop.shape == (5, 20) and reward.dtype == np.float32 and stop.dtype == np.bool_
    assert np.array_equal(stop, reward > 0.5)
    for name, value in (("REFLECTOR_BATCH", 2), ("FRAMES_AT_ONCE", 3)):
        monkeypatch.setattr(truth, name, value)
    assert np.allclose(reward, judge_trajectories(tiny.reflector(), trajectories)[0], atol=1e-4)
    assert not np.allclose(reward[0], reward[4])


def test_frames_are_judged_after_the_first_by_all_that_came_before(tiny):
    reflector, trajectories = tiny.reflector(), [tiny.trajectory(9, i) for i in range(2)]
    starts, frames = starts_of(trajectories), torch.from_numpy(np.stack([t.frames for t in trajectories]))
    reward, stop = judge_frames(reflector, starts, frames)
    state = reflector.begin(starts.seen, reflector.read(starts.texts))
    expected, _ = reflector.judge(frames[:, 1:], state)
    torch.testing.assert_close(reward, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(stop, reward > 0.5) and not reward.requires_grad


def test_starts_of_recorded_episodes_are_their_first_observations(tiny):
    trajectories = [tiny.trajectory(3, i) for i in range(3)]
    trajectories[1] = replace(trajectories[1], instruction="drop it in the tray")
    starts = starts_of(trajectories)
    assert starts.instructions == [t.instruction for t in trajectories] and len(starts.texts) == 2
    for i, trajectory in enumerate(trajectories):
        assert np.array_equal(starts.seen.frames[i].numpy(), trajectory.frames[0])
        assert np.array_equal(starts.seen.proprio[i].numpy(), trajectory.proprio[0])
        assert np.array_equal(starts.seen.camera[i].numpy(), trajectory.camera)
    assert starts_of([replace(trajectories[0], camera=None), trajectories[1]]).seen.camera is None


def test_part_without_parameters_is_on_the_cpu(tiny):
    assert device_of(object()) == device_of(torch.nn.ReLU()) == torch.device("cpu")
    assert device_of(tiny.policy().to("meta")) == torch.device("meta")
