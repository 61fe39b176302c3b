"""The guard: an imagination that knows when it is wrong is green, one that does not know or has it backwards is red."""

import numpy as np
import pytest

from worldenv.evaluation.guard import guard


def drawn(unsure_of):
    """4,000 episodes that are wrong with a chance drawn evenly, and how unsure imagination says it is of each."""
    random = np.random.default_rng(0)
    chance = random.random(4000)
    return unsure_of(chance), random.random(4000) < chance


@pytest.mark.parametrize(
    ("unsure_of", "auroc"),
    [
        (lambda chance: chance, 5 / 6),  # P(x > y) for densities 2 x and 2 (1 - y)
        (lambda chance: chance**3, 5 / 6),  # the same order
        (lambda chance: np.full_like(chance, 0.3), 0.5),  # knows nothing
        (lambda chance: 1 - chance, 1 / 6),  # the wrong way round
        (lambda chance: chance[::-1], 0.5),  # of other episodes
    ],
)
def test_auroc_is_that_of_what_imagination_knows(unsure_of, auroc):
    found = guard(*drawn(unsure_of))
    assert found["auroc"] == pytest.approx(auroc, abs=0.02) and found["n"] == 4000
    low, high = found["interval"]
    assert low - 1e-9 <= auroc <= high + 1e-9 and high - low < 0.04


def test_auroc_against_a_hand_computation():
    found = guard([0.1, 0.4, 0.4, 0.8, 0.2], [False, False, True, True, False])
    assert found["auroc"] == pytest.approx((2.5 + 3) / 6) and found["n_wrong"] == 2
    assert found["wrong"] == pytest.approx(0.6) and found["right"] == pytest.approx(0.7 / 3)


def test_interval_covers_the_true_value_as_often_as_it_says():
    random, covered = np.random.default_rng(1), 0
    for _ in range(400):
        chance = random.random(150)
        low, high = guard(chance, random.random(150) < chance)["interval"]
        covered += low <= 5 / 6 <= high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("wrong", [[False, False, False], [True, True, True]])
def test_without_wrong_or_without_right_outcomes_there_is_no_auroc(wrong):
    found = guard([0.1, 0.2, 0.3], wrong)
    assert found["auroc"] is None and found["interval"] is None and found["n_wrong"] == sum(wrong)


def test_one_wrong_outcome_has_no_interval():
    found = guard([0.1, 0.2, 0.3], [False, True, False])
    assert found["auroc"] == 0.5 and found["interval"] is None


@pytest.mark.parametrize(
    ("unsure", "wrong"), [([], []), ([0.1], [True, False]), ([[0.1]], [[True]]), ([float("nan")], [True])]
)
def test_what_cannot_be_compared_is_refused(unsure, wrong):
    with pytest.raises(ValueError, match="unsure"):
        guard(unsure, wrong)
