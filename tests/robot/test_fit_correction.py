"""A correction is fitted to what linear kinematics leave out, and kept where it helps on held-out episodes."""

from dataclasses import asdict, replace
from json import dumps, loads

import numpy as np
import pytest
import torch

from worldenv.fields import from_document
from worldenv.robot import fit_correction
from worldenv.robot.fit import chunk_errors
from worldenv.robot.fit_correction import is_held_out, with_correction
from worldenv.robot.fitted import FittedKinematics

LINEAR = FittedKinematics(0.02 * np.eye(7), 0.01 * np.eye(7), 0.3 * np.eye(7), (0.0,) * 7, (0.0, 1.0))
STEPS = 40


def recorded(episodes, bend, seed=0):
    """Of an arm whose fast moves along x fall short: by `bend` times the square of the action."""
    draw = torch.Generator().manual_seed(seed)
    actions = 2 * torch.rand(episodes, STEPS, 7, generator=draw) - 1
    pose, poses = torch.rand(episodes, 7, generator=draw) * 0.3, []
    motion = LINEAR.rest(pose)
    poses.append(pose)
    for action in actions.unbind(1):
        ahead, _ = LINEAR.follow(pose, motion, action[:, None])
        ahead = ahead[:, 0].clone()
        ahead[:, 0] -= bend * action[:, 0].square() * action[:, 0].sign()
        motion, pose = LINEAR.after_move(pose, action, ahead), ahead
        poses.append(pose)
    return [(p.numpy(), a.numpy()) for p, a in zip(torch.stack(poses, dim=1), actions, strict=True)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(fit_correction, "STEPS", 600)
    monkeypatch.setattr(fit_correction, "LEAST_STEPS", 1000)


def error(kinematics, episodes):
    return chunk_errors(kinematics, episodes, 4)[0][:, -1].mean()


def test_what_the_linear_model_leaves_out_is_learned(quick):
    found = with_correction(LINEAR, recorded(60, 0.01))
    others = recorded(20, 0.01, seed=1)
    assert found.correction is not None and error(found, others) < 0.3 * error(LINEAR, others)
    assert 0.005 < found.most[0] < 0.02 and replace(found, correction=None, most=None) == LINEAR
    assert from_document(FittedKinematics, loads(dumps(asdict(found))), "it") == found
    assert with_correction(LINEAR, recorded(60, 0.01)) == found  # the random numbers are its own


def test_correction_that_does_not_help_on_held_out_episodes_is_dropped(quick):
    episodes = recorded(60, 0.0)  # nothing is left out
    assert with_correction(LINEAR, episodes) is LINEAR
    out = is_held_out(60, 0)
    assert out.sum() == 15 and len({*np.flatnonzero(out) % 6}) == 6  # of six tasks that take turns, all are held out
    both = zip(episodes, recorded(60, 0.01), out, strict=True)
    misleading = [straight if chosen else bent for straight, bent, chosen in both]
    assert with_correction(LINEAR, misleading) is LINEAR


def test_few_steps_get_no_correction(monkeypatch):
    monkeypatch.setattr(fit_correction, "LEAST_STEPS", 46 * STEPS)
    assert with_correction(LINEAR, recorded(60, 0.01)) is LINEAR  # 45 of them are fitted
