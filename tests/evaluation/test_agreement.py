"""Agreement of outcomes: flipped outcomes are found, task by task, and chance is told from a real gap."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv.evaluation.agreement import agreement, outcomes
from worldenv.rollout.episodes import Rollouts

TASKS = [f"task {i % 4}" for i in range(80)]


def test_equal_outcomes_agree_without_any_gap():
    true = np.random.default_rng(0).random(80) < 0.5
    found = agreement(true, true, TASKS)
    assert found["share"] == 1.0 and found["n"] == 80
    assert found["mean_gap"] == found["largest_gap"] == found["mean_gap_by_chance"] == 0.0
    assert found["mean_gap_interval"] == found["largest_gap_interval"] == [0.0, 0.0]
    assert all(
        part["gap"] == 0 and part["interval"][0] < 0 < part["interval"][1] for part in found["per_task"].values()
    )


def test_flipped_outcomes_of_one_task_are_its_gap():
    true = np.zeros(80, dtype=bool)
    imagined = true.copy()
    imagined[[1, 5, 9, 13, 17]] = True  # five of the twenty of task 1
    found = agreement(imagined, true, TASKS)
    assert found["share"] == 75 / 80 and found["interval"][0] < 75 / 80 < found["interval"][1]
    assert found["per_task"]["task 1"] | {"interval": None} == {
        "imagined": 0.25,
        "true": 0.0,
        "gap": 0.25,
        "interval": None,
        "n": 20,
    }
    assert found["per_task"]["task 1"]["interval"][0] > 0  # a real one
    assert found["largest_gap"] == 0.25 and found["mean_gap"] == pytest.approx(0.25 / 4)
    low, high = found["largest_gap_interval"]
    assert low < 0.25 < high
    swapped = agreement(true, imagined, TASKS)
    assert swapped["per_task"]["task 1"]["gap"] == -0.25 and swapped["largest_gap"] == 0.25


def test_errors_either_way_disagree_and_leave_no_gap():
    true = np.arange(80) // 4 % 2 == 0  # half of each task
    found = agreement(~true, true, TASKS)
    assert found["share"] == 0.0 and found["largest_gap"] == 0.0


def test_gap_by_chance_is_what_fair_errors_give():
    random, gaps = np.random.default_rng(1), []
    true, differ = np.zeros(80, dtype=bool), np.arange(80) // 4 < 6  # six of each task's twenty
    for _ in range(200):
        flips = random.random(80) < 0.5
        gaps.append(agreement(differ & flips, differ & ~flips, TASKS)["mean_gap"])
    expected = agreement(differ, true, TASKS)["mean_gap_by_chance"]
    assert np.mean(gaps) == pytest.approx(expected, abs=0.01) and expected == pytest.approx(1.875 / 20)


def test_intervals_are_those_of_the_seed_and_bad_lengths_are_refused():
    random = np.random.default_rng(2)
    imagined, true = random.random((2, 80)) < 0.5
    assert agreement(imagined, true, TASKS, 3) == agreement(imagined, true, TASKS, 3)
    assert agreement(imagined, true, TASKS, 3) != agreement(imagined, true, TASKS, 4)
    with pytest.raises(ValueError, match="need as many"):
        agreement(imagined[:3], true, TASKS)
    with pytest.raises(ValueError, match="need as many"):
        agreement([], [], [])


class Imagined(SimpleNamespace):
    """Rollouts of which only some tensors are known."""

    succeeded = Rollouts.succeeded


def imagined_of(chunks, stops):
    """Episodes of which only the stops are known."""
    return Imagined(
        stopped=torch.tensor([stop is not None for stop in stops]),
        reward=torch.zeros(len(stops), chunks, 4),
        stop=torch.tensor([4 * chunks if stop is None else stop for stop in stops]),
        broken=torch.zeros(len(stops), dtype=torch.bool),
    )


def test_success_is_likely_before_the_reflector_stops():
    imagined = imagined_of(2, [None, None, None, 5])
    imagined.reward[0, 1, 0] = imagined.reward[2, 0, 0] = 0.6
    imagined.reward[1, 0, 3] = 0.5
    imagined.broken[2] = True
    assert imagined.succeeded().tolist() == [False, False, False, True]
    assert imagined.succeeded(0.5).tolist() == [True, False, False, True]
    assert imagined.succeeded(0.5, 4).tolist() == [False, False, False, False]
    true = [SimpleNamespace(success=np.zeros(8, bool), actions=np.zeros((8, 7)))] * 4
    assert outcomes(imagined, true, 0.5)[0].tolist() == [True, False, False, True]
    assert outcomes(imagined, true)[0].tolist() == [False, False, False, True]


def test_outcomes_are_compared_over_as_many_steps():
    def both(chunks, stops):
        true = [SimpleNamespace(success=np.arange(8) >= at, actions=np.zeros((8, 7))) for at in (3, 6, 99)]
        return [part.tolist() for part in outcomes(imagined_of(chunks, stops), true)]

    assert both(2, [4, None, 8]) == [[True, False, True], [True, True, False]]
    assert both(1, [4, None, None]) == [[True, False, False], [True, False, False]]
    assert both(3, [4, 12, None]) == [[True, False, False], [True, True, False]]
