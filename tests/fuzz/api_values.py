"""What is refused as it is made: descriptions of robots and cameras, tables, keys of random numbers."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sound_models import TINY

import worldenv

WRONG = [None, 3, (), "ab", (1,), (None, 1)]
ROBOT = {"proprio": ("x", "y"), "action": ("dx",), "low": (0.0, 0.0), "high": (1.0, 1.0)}
CAMERA = {"intrinsics": np.eye(3), "extrinsics": np.eye(4), "height": 8, "width": 8}
IDS = torch.arange(3)
AHEAD, LEFT = (0, -1, 1), (0, 0, 0)
VALUES: dict[str, tuple[Callable, list]] = {  # what makes something, and what it cannot be made of
    **{
        f"Robot {name}": (
            lambda x, name=name: worldenv.Robot(**ROBOT | {name: x}),
            [None, 3, (), "ab", (1,), (None, 1)],
        )
        for name in ROBOT
    },
    "Robot bounds": (lambda x: worldenv.Robot(**ROBOT | {"low": x}), [(2.0, 0.0), (math.nan, 0.0), (1.0,)]),
    **{
        f"Robot {name}": (lambda x, name=name: worldenv.Robot(**ROBOT, **{name: x}), ["x", math.nan, True, (0.1,)])
        for name in ("ground_m", "clear_m")
    },
    "Robot kinematics": (lambda x: worldenv.Robot(**ROBOT, kinematics=x), [3, "x", worldenv.Kinematics]),
    "Kinematics low": (
        lambda x: worldenv.Kinematics(low=x),
        [None, (1.0,), "abcdef", (math.nan,) * 6, (9.0,) * 6, (None,) * 6],
    ),
    "Kinematics step": (
        lambda x: worldenv.Kinematics(translation_step=x),
        [None, "x", 0, -1, math.nan, math.inf, True],
    ),
    "Kinematics rotation": (lambda x: worldenv.Kinematics(rotation=x), [None, "turn", 3, []]),
    "Camera matrix": (
        lambda x: worldenv.Camera(**CAMERA | {"intrinsics": x}),
        [None, "x", np.eye(4), np.full((3, 3), np.inf), [[1]]],
    ),
    "Camera height": (
        lambda x: worldenv.Camera(**CAMERA | {"height": x}),
        [None, 0, -1, 1.5, "8", math.nan, True],
    ),
    "Camera eye": (
        lambda x: worldenv.Camera.look_at(x, LEFT, 40.0, 8),
        [None, (1, 2), "abc", (0, 0, 1), (math.nan,) * 3],
    ),
    "Camera fov": (lambda x: worldenv.Camera.look_at(AHEAD, LEFT, x, 8), [None, 0, 180, "x", math.nan]),
    "Camera size": (lambda x: worldenv.Camera.look_at(AHEAD, LEFT, 40.0, x), [None, 0, "x", math.nan, -3]),
    "Camera points": (lambda x: worldenv.Camera(**CAMERA).project(x), [None, "x", [1, 2], [[None] * 3]]),
    "table_of": (worldenv.table_of, ["put it", [1, 2], [None], [b"x"], None, 3]),
    "pick": (
        TINY.starts(3).pick,
        [None, 3, [0], torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor(0), torch.ones(3) > 0],
    ),
    "philox shape": (
        lambda x: worldenv.philox(0, IDS, IDS, 0, x),
        [(-1,), (1.5,), "ab", None, 3, (2**62, 2**62)],
    ),
    "philox seed": (lambda x: worldenv.philox(x, IDS, IDS, 0, (2,)), [1.5, "a", None, 2**64, 10**30]),
    "philox use": (lambda x: worldenv.philox(0, IDS, IDS, x, (2,)), [-1, 256, "a", None, 0.5]),
    "philox episode": (
        lambda x: worldenv.philox(0, x, IDS, 0, (2,)),
        [None, 3, [0, 1, 2], IDS.int(), IDS[:2], IDS[None], IDS.to("meta")],
    ),
}
