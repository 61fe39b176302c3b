"""How a policy practises: the learning rate over the iterations, and what is refused."""

import math

import pytest

from worldenv.errors import UserError
from worldenv.rl.config import PostTrainConfig


def test_learning_rate_rises_over_the_first_iterations_and_falls_to_a_tenth():
    config = PostTrainConfig(iterations=36, learning_rate=4e-4, warmup=4)
    expected = [1e-4, 2e-4 * 0.975, 4e-4 * 0.925, 4e-4 * 0.9, 4e-4 * 0.125]
    assert [config.rate(i) for i in (0, 1, 3, 4, 35)] == pytest.approx(expected)
    assert PostTrainConfig(learning_rate=4e-4, warmup=1).rate(0) == 4e-4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"siblings": 1}, "siblings is 1; leave-one-out needs at least 2"),
        ({"iterations": 0}, "must be positive"),
        ({"starts": 0}, "must be positive"),
        ({"epochs": 0}, "must be positive"),
        ({"minibatch": 0}, "must be positive"),
        ({"warmup": 0}, "warmup is 0; it should be at least 1"),
        ({"clip": 0.0}, r"clip must lie in \(0, 1\)"),
        ({"clip": 1.0}, r"clip must lie in \(0, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate be positive"),
        ({"learning_rate": math.inf}, "learning_rate be positive and finite"),
        ({"signal": math.nan}, r"signal must lie in \[0, 1\]"),
        ({"max_skipped": -1}, "max_skipped not be negative"),
    ],
)
def test_bad_configuration_is_refused(bad, message):
    with pytest.raises(UserError, match=message):
        PostTrainConfig(**bad)
