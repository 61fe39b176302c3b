"""Actions in the robot's units, and in [-1, 1]."""

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.robot.bounds import ActionBounds


def test_actions_are_scaled_to_their_bounds_and_restored():
    rng = np.random.default_rng(0)
    actions = [(rng.normal(size=(n, 4)) * [1, 100, 1e-3, 0] + [0, 50, 1, 7]).astype(np.float32) for n in (9, 5)]
    bounds = ActionBounds.of(actions)
    scaled = [bounds.scaled(a) for a in actions]
    together = np.concatenate(scaled)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together[:, :3].min(0), -1, atol=1e-6)
    np.testing.assert_allclose(together[:, :3].max(0), 1, atol=1e-6)
    assert (together[:, 3] == 0).all()  # it is always 7
    for found, recorded in zip(map(bounds.restored, scaled), actions, strict=True):
        np.testing.assert_allclose(found, recorded, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(bounds.restored(np.zeros((2, 3, 4), np.float32)).shape, (2, 3, 4))


def test_actions_outside_are_refused():
    bounds = ActionBounds((0.0, 3.0), (1.0, 3.0))
    with pytest.raises(UserError, match="action 0 is 2 at row 1, outside of its bounds 0 to 1: give wider bounds"):
        bounds.scaled(np.array([[0.0, 3.0], [2.0, 3.0]]))
    with pytest.raises(UserError, match="an action has 3 numbers, the bounds have 2"):
        bounds.scaled(np.zeros((1, 3)))
    assert bounds.scaled(np.array([[1.0 + 1e-9, 3.0]])).tolist() == [[1.0, 0.0]]  # rounding


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ((), (), r"low of the action bounds is \(\)"),
        ((0, float("nan")), (1, 1), "low of the action bounds is"),
        ((0,), ("1",), "high of the action bounds is"),
        ((0, 0), (1,), "2 lower and 1 upper"),
        ((0, 2), (1, 1), "the lower bound of action 1 is above the upper one"),
    ],
)
def test_wrong_bounds_are_refused(low, high, message):
    with pytest.raises(UserError, match=message):
        ActionBounds(low, high)
