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
        ({"siblings": 1}, "siblings is 1; it should be a whole number from 2 to"),
        ({"iterations": 0}, "iterations is 0; it should be a whole number from 1 to 1,000,000"),
        ({"iterations": 10**12}, "iterations is 1000000000000; it should"),
        ({"starts": 0}, "starts is 0"),
        ({"starts": 2.0}, "starts is 2.0"),
        ({"starts": 10**5, "siblings": 11}, "starts is 100000, siblings 11; the product should not exceed 1,000,000"),
        ({"epochs": True}, "epochs is True"),
        ({"minibatch": 0}, "minibatch is 0"),
        ({"accumulate": 257}, "accumulate is 257; it should not exceed minibatch, 256"),
        ({"warmup": 0}, "warmup is 0"),
        ({"clip": 0.0}, "clip is 0.0; it should be a number above 0 and below 1"),
        ({"clip": 1.0}, "clip is 1.0; it should be a number above 0 and below 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0; only with a head_learning_rate can it be"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001; it should be a number from 0 to 10"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": "4e-4"}, "learning_rate is '4e-4'"),
        ({"signal": math.nan}, "signal is nan; it should be a number from 0"),
        ({"max_skipped": -1}, "max_skipped is -1"),
        ({"guard": -1.0}, "guard is -1.0; it should be a number from 0 to 100"),
    ],
)
def test_bad_configuration_is_refused(bad, message):
    with pytest.raises(UserError, match=message):
        PostTrainConfig(**bad)
