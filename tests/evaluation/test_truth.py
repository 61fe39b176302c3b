"""The three stopping rules, the figures made of them, and episodes in the true environment."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.data.trajectories import Trajectory
from worldenv.errors import UserError
from worldenv.evaluation.pictures import psnr
from worldenv.evaluation.truth import (
    EvalConfig,
    act_in_true,
    judge_outcome,
    judge_trajectories,
    simulator_quality,
    starts_of,
)
from worldenv.records.intervals import wilson_interval
from worldenv.suites.tabletop.physics import HORIZON
from worldenv.suites.tabletop.scenes import TASKS


def recorded(success, task="stack"):
    n = len(success)
    frames, proprio = np.zeros((n + 1, 1, 8, 8, 3), np.uint8), np.zeros((n + 1, 7), np.float32)
    actions = np.zeros((n, 7), np.float32)
    labels = ("put it", task, 0, "test", "policy")
    return Trajectory(frames, proprio, actions, np.array(success, bool), None, ("agentview",), *labels)


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
    return judge_outcome(trajectories, np.array([case[1] for case in CASES], np.float32), 0.5)


def test_three_stopping_rules(outcome):
    for rule, column in (("oracle", 2), ("own_stop", 3), ("no_stop", 4)):
        assert outcome.success[rule].tolist() == [case[column] for case in CASES], rule
    assert outcome.stop.tolist() == [case[5] for case in CASES]
    assert outcome.stopped.tolist() == [case[6] for case in CASES]


def test_false_stops_count_among_all_and_missed_ones_among_the_successes(outcome):
    assert outcome.false_stop == 3 / 8  # too late, too early, and in a failure
    assert outcome.missed_stop == 2 / 6


def test_missed_stop_of_no_success_is_zero():
    assert judge_outcome([recorded([0, 0])], np.zeros((1, 2), np.float32), 0.5).missed_stop == 0


def test_document_has_rates_and_wilson_intervals_over_all_and_by_task(outcome):
    document = outcome.document({"push": "push it there"})
    assert document["n"] == 8 and document["oracle"] == 6 / 8 and document["own_stop"] == 3 / 8
    assert document["intervals"]["own_stop"] == list(wilson_interval(3, 8))
    push = document["per_task"]["push"]
    assert sorted(document["per_task"]) == ["push", "stack"] and push["instruction"] == "push it there"
    assert push["n"] == 3 and push["oracle"] == pytest.approx(1 / 3)
    assert push["intervals"]["no_stop"] == list(wilson_interval(1, 3))
    assert document["per_task"]["stack"]["intervals"]["oracle"] == list(wilson_interval(5, 5))


def test_true_episodes_run_to_the_horizon_and_repeat(tiny):
    policy = tiny.policy()
    tasks, starts = [TASKS[0], TASKS[7], TASKS[3]], [4, 5, 6]
    first, again = (act_in_true(policy, tasks, starts, "test", image_size=16) for _ in range(2))
    for a, b, task, start in zip(first, again, tasks, starts, strict=True):
        assert len(a.actions) == HORIZON and (a.task, a.start, a.split) == (task.name, start, "test")
        assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        begun = starts_of([task], [start], "test", image_size=16)
        assert np.array_equal(begun.frame[0].numpy(), a.frames[0, 0]) and np.array_equal(
            begun.proprio[0].numpy(), a.proprio[0]
        )
        with torch.no_grad():
            seen = [torch.from_numpy(x[[0, 8]]) for x in (a.frames[:, 0], a.proprio)]
            mu, _ = policy(*seen, begun.tokens.expand(2, -1))
        torch.testing.assert_close(torch.from_numpy(a.actions[:4]), mu[0].clamp(-1, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(a.actions[8:12]), mu[1].clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_perturbation_shakes_the_actions_by_its_seed(tiny):
    def act(perturb, seed):
        return act_in_true(tiny.policy(), [TASKS[0]], [4], "train", perturb, seed, image_size=16)[0].actions

    mean, once, twice, other = act(0, 0), act(1.0, 0), act(2.0, 0), act(1.0, 1)
    assert not np.array_equal(once, other) and np.array_equal(once, act(1.0, 0))
    inside = np.abs(twice[:4]) < 1
    assert np.allclose((twice - mean)[:4][inside], 2 * (once - mean)[:4][inside], atol=1e-5)


def test_each_episode_may_be_perturbed_by_its_own_scale(tiny):
    def act(perturb):
        return act_in_true(tiny.policy(), [TASKS[0]] * 2, [4, 4], "train", perturb, 7, image_size=16)

    none, both = act(0.0), act(torch.tensor([0.0, 1.5]))
    assert np.allclose(both[0].actions, none[0].actions)
    assert not np.allclose(both[1].actions, none[1].actions)


def test_judged_rewards_do_not_depend_on_the_batch(tiny):
    trajectories = [tiny.trajectory(20, i) for i in range(5)]
    reward = judge_trajectories(tiny.reflector(), trajectories)
    assert reward.shape == (5, 20) and reward.dtype == np.float32
    assert np.allclose(reward, judge_trajectories(tiny.reflector(), trajectories, batch=2), atol=1e-4)
    assert not np.allclose(reward[0], reward[4])


def test_simulator_quality_compares_whole_replays_chunk_by_chunk(tiny):
    engine, trajectories = tiny.engine(), [tiny.trajectory(12, i) for i in range(3)]
    found = simulator_quality(engine, trajectories, np.array([True, True, False]), seed=1)
    assert len(found["psnr"]) == len(found["ssim"]) == 3 and found["episodes"] == 3
    frames, poses = (torch.from_numpy(np.stack([getattr(t, k) for t in trajectories])) for k in ("frames", "proprio"))
    frames = frames[:, :, 0]
    imagined = engine.world.replay(frames[:, 0], poses, 1)
    assert found["psnr"][1] == pytest.approx(psnr(imagined[:, 5:9], frames[:, 5:9]).mean().item(), rel=1e-4)
    shown = [replace(t, frames=video.numpy()[:, None]) for t, video in zip(trajectories, imagined, strict=True)]
    said = (judge_trajectories(engine.reflector, shown) > 0.5).any(1)
    assert found["agreement"] == pytest.approx((said == [True, True, False]).mean())


@pytest.mark.parametrize("bad", [{"episodes": 9}, {"imagined": 0}, {"quality": 0}, {"videos": -1}])
def test_evaluation_of_nothing_is_refused(bad):
    with pytest.raises(UserError, match="--eval.episodes must be at least 10"):
        EvalConfig(**bad)


def test_perceptual_weights_are_looked_for_before_any_work(tmp_path):
    with pytest.raises(UserError, match="has no weights to measure with"):
        EvalConfig(weights=tmp_path)
