"""What a trajectory may hold."""

from dataclasses import replace

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((5, 1, 7, 9, 3), np.uint8)}, r"frames is uint8 \[5, 1, 7, 9, 3\]"),
        ({"frames": np.zeros((6, 7, 9, 3), np.uint8)}, r"frames is uint8 \[6, 7, 9, 3\].*uint8 \[6, 1, H, W, 3\]"),
        ({"frames": np.zeros((6, 2, 7, 9, 3), np.uint8)}, r"frames is uint8 \[6, 2, 7, 9, 3\]"),
        ({"frames": np.zeros((6, 1, 0, 9, 3), np.uint8)}, "at least one pixel"),
        ({"frames": np.zeros((6, 1, 7, 9, 3), np.float32)}, "frames is float32"),
        ({"proprio": np.zeros((6, 7))}, "proprio is float64"),
        ({"proprio": np.zeros((6, 0), np.float32)}, r"proprio is float32 \[6, 0\].*\[6, P\]"),
        ({"actions": np.full((5, 7), 1.5, np.float32)}, r"actions reach 1.5.*\[-1, 1\]"),
        ({"actions": np.full((5, 7), np.inf, np.float32)}, "actions has values that are not finite"),
        ({"actions": np.zeros((0, 7), np.float32)}, "at least one action"),
        ({"actions": np.zeros(5, np.float32)}, r"actions is float32 \[5\].*\[5, A\]"),
        ({"success": np.zeros(5, np.uint8)}, "success is uint8"),
        ({"camera": np.zeros((2, 3, 4), np.float32)}, r"camera is float32 \[2, 3, 4\].*\[1, 3, 4\]"),
        ({"camera": np.full((1, 3, 4), np.nan, np.float32)}, "camera has values that are not finite"),
        ({"views": ("a", "a")}, "none twice"),
        ({"views": ["agentview"]}, "should be a tuple"),
        ({"views": ("a/b",)}, "'a/b'"),
        ({"views": ("a\0b",)}, "views has the name"),
        ({"source": "human"}, "source is 'human': it should be one of expert, policy"),
        ({"instruction": ""}, "instruction is ''"),
        ({"task": "a\0b"}, "without NUL"),
        ({"split": "\udc80"}, "split is"),
        ({"start": 1.5}, "start is 1.5"),
        ({"start": 2**63}, "64 bits"),
    ],
)
def test_wrong_trajectory_is_refused_where_it_is_made(make, change, message):
    with pytest.raises(ValueError, match=message):
        replace(make(), **change)


def test_any_number_of_views_joints_and_actions_may_be_there(make):
    made = make(steps=1, size=(1, 3), views=("left", "über der Hand"), proprio=1, actions=23, camera=False)
    assert made.frames.shape == (2, 2, 1, 3, 3) and made.camera is None
