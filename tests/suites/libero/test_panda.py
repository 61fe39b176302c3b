"""The kinematics of LIBERO's robot: what they say of a scene to which they were not fitted."""

import numpy as np
import torch

from worldenv.suites.libero.suite import LiberoSuite


def test_hand_goes_where_the_kinematics_say(libero):
    """Actions of a scene that is neither fitted nor measured by benchmarks/libero_kinematics.py."""
    suite = LiberoSuite("libero_goal", tasks=(2,), size=16, repeat=2, workers=1)
    drawn = np.random.default_rng(0)
    actions = drawn.uniform(-1, 1, (8, 7)).astype(np.float32)
    actions[:, 2] = np.abs(actions[:, 2])  # up, away from what stands there
    actions[:, 3:6] *= 0.2
    seen = [suite.reset(suite.tasks, [3], "test").seen]
    seen += [suite.step(action[None])[0] for action in actions]
    suite.close()
    proprio = torch.cat([one.proprio for one in seen])
    kinematics = suite.robot.kinematics
    found, _ = kinematics.follow(proprio[0], kinematics.rest(proprio[0]), torch.from_numpy(actions))
    away = (found - proprio[1:])[:, :3].norm(dim=1)
    assert away.mean() < 0.01 and away[-1] < 0.02  # m
    assert (proprio[-1] - proprio[0])[:3].norm() > 0.04
    assert (found - proprio[1:])[:, 6].abs().max() < 0.15
