"""The network-free kinematics must be the simulator's own, or imagined and true trajectories drift apart."""

import numpy as np
import pytest
import torch

from worldenv.robot.kinematics import Kinematics, chunk_kinematics, forward_kinematics
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS

TOLERANCE = 1.2e-7  # one float32 rounding of a number below 1
ODD = Kinematics(0.021, 0.07, 0.3, (-0.05, -0.06, 0.03, -0.11, -0.12, -0.13), (0.07, 0.08, 0.17, 0.14, 0.15, 0.16))


def begun(kinematics=None, worlds=30):
    env = Tabletop(16, threads=1, kinematics=kinematics)
    env.reset([TASKS[i % len(TASKS)] for i in range(worlds)], range(worlds), "train")
    return env


def largest_error(env, actions):  # actions [T, E, 7]
    errors = []
    for action in actions:
        expected = forward_kinematics(torch.from_numpy(env.proprio()), torch.from_numpy(action), env.kinematics)
        env.step(action)
        errors.append(np.abs(env.proprio() - expected.numpy()).max())
    return max(errors)


@pytest.mark.parametrize("kinematics", [Kinematics(), ODD])
def test_random_actions_move_the_gripper_as_in_the_simulator(kinematics):
    env = begun(kinematics)
    actions = np.random.default_rng(0).uniform(-1.6, 1.6, (60, len(env), 7)).astype(np.float32)
    assert largest_error(env, actions) <= TOLERANCE


@pytest.mark.parametrize("kinematics", [Kinematics(), ODD])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_both_stop_exactly_at_the_limits(kinematics, sign):
    env = begun(kinematics, worlds=9)
    assert largest_error(env, np.full((14, 9, 7), sign, dtype=np.float32)) <= TOLERANCE
    limit = kinematics.low if sign < 0 else kinematics.high
    assert env.proprio()[:, :6] == pytest.approx(np.tile(limit, (9, 1)), abs=TOLERANCE)
    assert (env.proprio()[:, 6] == (0.0 if sign > 0 else 1.0)).all()


def test_chunk_equals_as_many_steps_of_the_simulator():
    env = begun()
    actions = np.random.default_rng(1).uniform(-1.2, 1.2, (len(env), 12, 7)).astype(np.float32)
    poses = chunk_kinematics(torch.from_numpy(env.proprio()), torch.from_numpy(actions), env.kinematics)
    assert poses.shape == (len(env), 12, 7)
    for k in range(12):
        env.step(actions[:, k])
        assert np.abs(env.proprio() - poses[:, k].numpy()).max() <= 12 * TOLERANCE


def test_unit_action_moves_by_the_stated_step():
    pose = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0])
    action = torch.tensor([1.0, -0.5, 0.2, 1.0, -1.0, 0.5, 1.0])
    expected = torch.tensor([0.035, -0.0175, 0.107, 0.12, -0.12, 0.06, 0.5])
    torch.testing.assert_close(forward_kinematics(pose, action, Kinematics()), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("command", "aperture"), [(0.0, 0.75), (-1e-6, 0.75), (1e-6, 0.0)])
def test_gripper_closes_for_positive_commands_only(command, aperture):
    env = begun(worlds=1)
    state = env.state()
    state[:, 6] = 0.25
    env.restore(state)
    action = np.array([[0, 0, 0, 0, 0, 0, command]], dtype=np.float32)
    assert largest_error(env, [action]) <= TOLERANCE
    assert env.proprio()[0, 6] == pytest.approx(aperture)


def test_gradient_reaches_the_action_unless_it_is_clipped():
    action = torch.tensor([0.3, 2.0, 0.0, 0.0, 0.0, -0.4, 0.5], requires_grad=True)
    forward_kinematics(torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]), action, Kinematics())[:6].sum().backward()
    expected = torch.tensor([0.035, 0.0, 0.035, 0.12, 0.12, 0.12, 0.0])
    torch.testing.assert_close(action.grad, expected)
