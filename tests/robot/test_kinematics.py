"""The network-free kinematics must be the simulator's own, or imagined and true trajectories drift apart."""

import math

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


def test_added_rotations_are_those_of_before_bit_by_bit():
    draw = torch.Generator().manual_seed(0)
    pose = torch.randn(50, 7, generator=draw) * 0.2
    actions = torch.randn(50, 12, 7, generator=draw)
    found = chunk_kinematics(pose, actions, ODD)
    step = torch.tensor([0.021] * 3 + [0.07] * 3 + [0.3])
    low, high = torch.tensor([*ODD.low, 0.0]), torch.tensor([*ODD.high, 1.0])
    for k in range(12):
        command = torch.cat([actions[:, k, :6].clamp(-1, 1), 1.0 - 2.0 * (actions[:, k, 6:] > 0).float()], dim=1)
        pose = torch.clamp(pose + command * step, low, high)
        assert torch.equal(found[:, k], pose)


COMPOSE = Kinematics(rotation_step=0.5, rotation="compose")
DOWN = [(math.pi - 1e-3, 0.0, 0.0), (math.pi, 0.0, 0.0), (0.0, math.pi, 0.0), (2.2, -2.2428, 0.0)]


def matrix(axis_angle):  # [..., 3] -> [..., 3, 3] float64
    x, y, z = axis_angle.double().unbind(-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.linalg.matrix_exp(torch.stack(rows, dim=-2))


def turned(axis_angle, turns, kinematics=COMPOSE):  # [..., 3], [..., K, 3] in units of the step -> [..., K, 3]
    pose = torch.zeros(*axis_angle.shape[:-1], 7)
    pose[..., 2], pose[..., 3:6] = 0.1, axis_angle
    actions = torch.zeros(*turns.shape[:-1], 7)
    actions[..., 3:6] = turns
    return chunk_kinematics(pose, actions, kinematics)[..., 3:6]


def test_two_turns_about_different_axes_are_the_product_of_their_matrices():
    turns = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    end = turned(torch.zeros(3), turns)[-1]
    product = matrix(0.5 * turns[1]) @ matrix(0.5 * turns[0])  # about the world's axes: the later turn on the left
    torch.testing.assert_close(matrix(end), product, rtol=0, atol=1e-6)
    assert (matrix(end) - matrix(0.5 * turns[0]) @ matrix(0.5 * turns[1])).abs().max() > 0.1


def test_any_turn_after_any_rotation_is_the_product_of_their_matrices():
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(2000, 3, generator=draw) * 2.0
    before[:500] *= 1e-4
    turns = torch.randn(2000, 1, 3, generator=draw)
    turns[250:750] *= 1e-4
    turns[0], before[1], turns[2], before[2] = 0, 0, 0, 0
    after = turned(before, turns)[:, 0]
    expected = matrix(0.5 * turns[:, 0].clamp(-1, 1)) @ matrix(before)
    torch.testing.assert_close(matrix(after), expected, rtol=0, atol=2e-6)
    assert torch.equal(after[2], torch.zeros(3))
    alone = turned(before[7], turns[7])[0]
    assert torch.equal(alone, after[7])


def test_small_turn_after_none_is_itself():
    turn = torch.tensor([[1e-7, -2e-9, 3e-8]])
    torch.testing.assert_close(turned(torch.zeros(3), turn), 0.5 * turn, rtol=1e-6, atol=0)


@pytest.mark.parametrize("down", DOWN)
@pytest.mark.parametrize("way", [1.0, -1.0])
def test_gripper_that_looks_down_turns_about_the_vertical(down, way):
    turns = torch.tensor([0.0, 0.0, way * 0.4]).expand(30, 3)  # by 6 radians
    after = turned(torch.tensor(down), turns)
    assert after.isfinite().all()
    expected = matrix(torch.tensor(down))
    for k in range(30):
        expected = matrix(0.5 * turns[k]) @ expected
        torch.testing.assert_close(matrix(after[k]), expected, rtol=0, atol=1e-5)
    steps = torch.cat([torch.tensor([down]), after]).diff(dim=0).norm(dim=1)
    assert steps.max() < 0.35  # half of the turn, on a circle of radius pi: the axis never flips


@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (0.6, 0.0, -0.8)])
def test_axis_does_not_flip_where_a_turn_passes_half_a_turn(axis):
    axis = torch.tensor(axis)
    after = turned((math.pi - 0.25) * axis, (0.2 * axis).expand(10, 3))
    lengths = math.pi - 0.25 + 0.1 * torch.arange(1, 11)
    torch.testing.assert_close(after, lengths[:, None] * axis, rtol=0, atol=1e-5)
    back = turned(after[-1], (-0.2 * axis).expand(10, 3))
    torch.testing.assert_close(back[-1], (math.pi - 0.25) * axis, rtol=0, atol=1e-5)


def test_axis_angle_is_never_longer_than_a_whole_turn():
    axis = torch.tensor([0.0, 0.6, 0.8])
    after = turned(torch.zeros(3), axis.expand(40, 3))  # by 20 radians
    assert after.norm(dim=1).max() <= 2 * math.pi + 1e-5
    torch.testing.assert_close(matrix(after[-1]), matrix(20 * axis), rtol=0, atol=2e-5)


def test_position_and_opening_are_limited_as_before_and_the_rotation_is_not():
    actions = torch.rand(9, 25, 7, generator=torch.Generator().manual_seed(0)) * 2 - 0.6
    pose = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0]).expand(9, 7)
    added, composed = (chunk_kinematics(pose, actions, Kinematics(rotation=way)) for way in ("add", "compose"))
    kept = [0, 1, 2, 6]
    assert torch.equal(added[..., kept], composed[..., kept])
    assert (added[..., :3] == torch.tensor(Kinematics().high[:3])).any()
    assert (composed[..., 3:6] > torch.tensor(Kinematics().high[3:])).any()


@pytest.mark.parametrize("rotation", ["add", "compose"])
def test_chunk_equals_as_many_single_actions_bit_by_bit(rotation):
    kinematics = Kinematics(rotation=rotation)
    actions = torch.randn(4, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    pose = torch.tensor([0.0, 0.0, 0.1, 3.1, 0.1, 0.0, 1.0]).expand(4, 3, 7)
    together = chunk_kinematics(pose, actions, kinematics)
    assert together.dtype == torch.float32 and together.shape == (4, 3, 9, 7)
    for k in range(9):
        pose = forward_kinematics(pose, actions[:, :, k], kinematics)
        assert torch.equal(pose, together[:, :, k])


def test_gradient_reaches_a_composed_rotation_also_where_there_is_none_yet():
    for start in ((0.0, 0.0, 0.0), (math.pi, 0.0, 0.0), (0.3, -0.2, 0.9)):
        action = torch.zeros(7, requires_grad=True)
        pose = torch.tensor([0.0, 0.0, 0.1, *start, 1.0])
        (row,) = torch.autograd.grad(forward_kinematics(pose, action, COMPOSE)[3:6].sum(), action)
        assert row.isfinite().all() and row[3:6].abs().max() > 0.1
    action = torch.zeros(7, requires_grad=True)
    pose = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 1.0])
    (row,) = torch.autograd.grad(forward_kinematics(pose, action, COMPOSE)[3:6].sum(), action)
    torch.testing.assert_close(row[3:6], torch.full((3,), 0.5))


def test_composition_is_traced_without_a_graph_break():
    def step(pose, actions):
        return chunk_kinematics(pose, actions, COMPOSE)

    pose, actions = torch.full((3, 7), 0.1), torch.full((3, 4, 7), 0.3)
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(pose, actions), step(pose, actions))


def test_a_hand_that_does_not_turn_has_actions_of_four_numbers():
    limits = (-0.5, 0.4, 0.0, 0.0, 0.0, 1.5), (0.5, 1.0, 0.4, 0.0, 0.0, 1.5)
    fixed = Kinematics(0.04, 0.1, 0.3, *limits, rotation="fixed")
    assert fixed.action_size == 4 and Kinematics().action_size == COMPOSE.action_size == 7
    pose = torch.tensor([[0.0, 0.5, 0.1, 0.0, 0.0, 1.5, 1.0]])
    actions = torch.tensor([[[1.0, -0.5, 2.0, 0.7], [0.0, -1.0, -1.0, 0.1], [0.0, -1.0, -1.0, -1.0]]])
    found = chunk_kinematics(pose, actions, fixed)[0]
    places = torch.tensor([[0.04, 0.48, 0.14], [0.04, 0.44, 0.10], [0.04, 0.40, 0.06]])
    torch.testing.assert_close(found[:, :3], places)
    assert torch.equal(found[:, 3:6], pose[:, 3:6].expand(3, 3))
    torch.testing.assert_close(found[:, 6], torch.tensor([0.7, 0.4, 0.7]))
    with pytest.raises(ValueError, match="proprio has 7 numbers and an action 7; these kinematics are of 7 and 4"):
        chunk_kinematics(pose, torch.zeros(1, 3, 7), fixed)


def test_what_these_kinematics_cannot_do_is_refused():
    with pytest.raises(ValueError, match="proprio has 9 numbers and an action 7; these kinematics are of 7 and 7"):
        chunk_kinematics(torch.zeros(2, 9), torch.zeros(2, 4, 7), Kinematics())
    with pytest.raises(ValueError, match="proprio has 7 numbers and an action 8"):
        forward_kinematics(torch.zeros(7), torch.zeros(8), Kinematics())
    with pytest.raises(ValueError, match="rotation is 'multiply'; it should be one of add, compose, fixed"):
        Kinematics(rotation="multiply")
    with pytest.raises(ValueError, match="the compiled simulator can only 'add'"):
        Tabletop(16, threads=1, kinematics=COMPOSE).reset([TASKS[0]], [0], "train")
