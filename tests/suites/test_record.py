"""What is noted is what was seen and done."""

import numpy as np

from worldenv.suites.record import Record
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS


def test_frames_and_poses_are_those_before_and_after_each_action():
    env, other = Tabletop(16, threads=1), Tabletop(16, threads=1)
    for each in (env, other):
        each.reset(TASKS[:2], [0, 1], "train")
    record, actions = Record(env), np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32)
    seen, poses, reached = [other.frames()], [other.proprio()], []
    for action in actions:
        record.step(action)
        reached.append(other.step(action))
        seen.append(other.frames())
        poses.append(other.proprio())
    frames, proprio, acted, success = record.stacked()
    assert np.array_equal(frames, np.stack(seen, 1)) and np.array_equal(proprio, np.stack(poses, 1))
    assert np.array_equal(acted, actions.transpose(1, 0, 2)) and np.array_equal(success, np.stack(reached, 1))
    assert frames.shape == (2, 4, 16, 16, 3) and success.shape == (2, 3)
