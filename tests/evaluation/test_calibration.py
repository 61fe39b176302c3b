"""The reflector's calibration: an honest reward is green, one that overstates or understates is red."""

import numpy as np
import pytest

from worldenv.evaluation.calibration import BINS, calibration, stop_errors
from worldenv.evaluation.truth import judge_outcome


def drawn(reward_of):
    """20,000 frames: rewards of a reflector, and successes whose probability is drawn evenly."""
    random = np.random.default_rng(0)
    chance = random.random((500, 40))
    return reward_of(chance), random.random((500, 40)) < chance


def test_an_honest_reward_is_calibrated():
    found = calibration(*drawn(lambda chance: chance))
    assert found["ece"] < 0.015 and found["n"] == 20_000 == sum(one["n"] for one in found["bins"])
    for i, one in enumerate(found["bins"]):
        assert i / BINS <= one["reward"] <= (i + 1) / BINS and one["success"] == pytest.approx(one["reward"], abs=0.04)


@pytest.mark.parametrize(
    ("reward_of", "ece"),
    [
        (lambda chance: chance**3, 1 / 4),  # understates: mean of p - p^3
        (lambda chance: np.ones_like(chance), 1 / 2),  # always sure
        (lambda chance: (chance > 0.5).astype(float), 1 / 4),  # sure of what is likely
        (lambda chance: 1 - chance, 1 / 2),  # the wrong way round
    ],
)
def test_a_miscalibrated_reward_has_the_error_that_it_makes(reward_of, ece):
    assert calibration(*drawn(reward_of))["ece"] == pytest.approx(ece, abs=0.02)


def test_a_bin_without_frames_says_nothing():
    found = calibration(np.array([0.0, 1.0, 0.999]), np.array([False, True, True]))
    assert [one["n"] for one in found["bins"]] == [1] + 8 * [0] + [2]
    assert found["bins"][4] == {"reward": None, "success": None, "n": 0}
    for wrong in (np.zeros((0,)), np.zeros((3, 1))):
        with pytest.raises(ValueError, match="they should be equal"):
            calibration(wrong, np.zeros(0 if not wrong.size else 3, dtype=bool))


def test_stops_err_as_the_stopping_rules_say():
    random = np.random.default_rng(1)
    success, stop = random.random((2, 63, 7)) < 0.15
    trajectories = [type("Episode", (), {"success": row, "task": "a"}) for row in success]
    outcome = judge_outcome(trajectories, np.zeros((63, 7)), stop)
    found = stop_errors(stop, success)
    assert found == {"false_stop": outcome.false_stop, "missed_stop": outcome.missed_stop}
    assert 0 < found["false_stop"] < 1 and 0 < found["missed_stop"] < 1
    assert stop_errors(success, success) == {"false_stop": 0.0, "missed_stop": 0.0}
    assert stop_errors(~success, success)["false_stop"] > 0.8 and stop_errors(success & False, success) == {
        "false_stop": 0.0,
        "missed_stop": 1.0,
    }
