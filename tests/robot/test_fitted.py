"""Kinematics of an arm that lags behind: what the formula does, and that recordings of such an arm give it back."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.robot.fit import chunk_errors, fit_kinematics
from worldenv.robot.fitted import FittedKinematics, commanded
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.robot.robot import moved_gripper

MATRICES = ("step", "after", "inertia")
GRIP = {"step": 0.11, "after": 0.05, "inertia": 0.35}


def arm():  # coupled axes, as in a real arm
    draw = np.random.default_rng(3)
    size = np.array([0.02] * 3 + [0.15] * 3)
    step = np.diag(size) + 0.1 * draw.uniform(-1, 1, (6, 6)) * size[:, None]
    after = np.diag(0.4 * size) + 0.05 * draw.uniform(-1, 1, (6, 6)) * size[:, None]
    inertia = 0.3 * np.eye(6) + 0.05 * draw.uniform(-1, 1, (6, 6)) * size[:, None] / size
    matrices = {"step": step, "after": after, "inertia": inertia}
    whole = {name: np.zeros((7, 7)) for name in matrices}
    for name, matrix in matrices.items():
        whole[name][:6, :6], whole[name][6, 6] = matrix, GRIP[name]
    drift = (0.0003, -0.0001, 0.0002, 0.001, 0.0, -0.001, 0.0)
    return FittedKinematics(**whole, drift=drift, opening=(0.02, 0.98))


def arm_by_place():  # where x is larger, it moves farther; where z is larger, it coasts longer, and sinks
    same, reach = arm(), ((-0.05, -0.15, 0.05), (0.25, 0.15, 0.35))
    step, after, inertia = (np.pad(np.array(getattr(same, name)), ((0, 0), (0, 21))) for name in MATRICES)
    step[:6, 7:13] = 2.0 * step[:6, :6]  # for a metre in x
    inertia[:6, 21:27] = 1.5 * inertia[:6, :6]
    drift = np.pad(np.array(same.drift), (0, 21))
    drift[23] = -0.004  # z, for a metre in z
    return FittedKinematics(step, after, inertia, drift.tolist(), same.opening, reach=reach)


def arm_with_correction():
    draw = np.random.default_rng(5)
    shapes = ((0.3, (32, 19)), (0.3, (32, 33)), (0.003, (6, 33)))
    layers = tuple((size * draw.normal(size=shape)).tolist() for size, shape in shapes)
    return replace(arm(), correction=layers, most=(0.004,) * 3 + (0.02,) * 3)


KINDS = pytest.mark.parametrize(
    "kinematics", [arm(), arm_by_place(), arm_with_correction()], ids=["same", "by place", "with correction"]
)


def poses(count, seed=0):  # [count, 7] float32: the hand looks down, so its axis-angle is near half a turn
    draw = torch.Generator().manual_seed(seed)
    middle = torch.tensor([0.1, 0.0, 0.2, 3.1, 0.1, 0.0, 0.98])
    return middle + torch.tensor([0.1] * 3 + [0.1] * 3 + [0.0]) * (2 * torch.rand(count, 7, generator=draw) - 1)


def actions(count, steps, seed=0):  # [count, steps, 7] float32
    draw = torch.Generator().manual_seed(seed)
    out = 2 * torch.rand(count, steps, 7, generator=draw) - 1
    phase = torch.randint(6, (count, 1), generator=draw)
    out[..., 6] = torch.where((torch.arange(steps) + phase) % 12 < 6, 1.0, -1.0)  # closes, and opens again
    return out


def recorded(count=6, steps=60, seed=0, kinematics=None):  # episodes as `fit_kinematics` takes them
    kinematics = kinematics or arm()
    begin, acted = poses(count, seed), actions(count, steps, seed)
    after, _ = kinematics.follow(begin, kinematics.rest(begin), acted)
    whole = torch.cat([begin[:, None], after], dim=1)
    return [(p.numpy(), a.numpy()) for p, a in zip(whole, acted, strict=True)]


def ways(kinematics, begin, acted):
    return kinematics.follow(begin, kinematics.rest(begin), acted)


def test_an_arm_without_lag_moves_as_the_exact_kinematics_say():
    zero = np.zeros((7, 7))
    step = np.diag([0.035] * 3 + [0.12] * 3 + [0.5])
    fitted = FittedKinematics(step, zero, zero, (0.0,) * 7, (0.0, 1.0))
    exact = Kinematics(low=(-9.0,) * 6, high=(9.0,) * 6, rotation="compose")
    begin, acted = poses(20), 1.5 * actions(20, 8)  # beyond the limits, too
    found, motion = ways(fitted, begin, acted)
    torch.testing.assert_close(found, chunk_kinematics(begin, acted, exact), rtol=0, atol=1e-6)
    assert not motion.any()


def test_an_arm_coasts_after_its_last_action_and_comes_to_rest():
    zero = np.zeros((7, 7))
    lagging = FittedKinematics(0.01 * np.eye(7), 0.02 * np.eye(7), 0.5 * np.eye(7), (0.0,) * 7, (0.0, 1.0))
    begin, acted = torch.tensor([[0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 5, 7)
    acted[:, 0, 0], acted[..., 6] = 1.0, -1.0
    found, motion = ways(lagging, begin, acted)
    x = found[0, :, 0].tolist()
    assert x == pytest.approx([0.01, 0.035, 0.0475, 0.05375, 0.056875], abs=1e-7)  # 0.01, then 0.02 + 0.005, halved ...
    assert found[0, :, 1:6].abs().max() < 0.21 and torch.equal(found[0, :, 6], torch.ones(5))
    assert motion[0, 0].item() == pytest.approx(0.0015625) and zero.sum() == 0


@KINDS
def test_two_chunks_are_one_chunk_of_both_and_a_row_does_not_depend_on_the_others(kinematics):
    begin, acted = poses(33), actions(33, 12)
    whole, end = ways(kinematics, begin, acted)
    first, motion = ways(kinematics, begin, acted[:, :5])
    second, last = kinematics.follow(first[:, -1], motion, acted[:, 5:])
    assert torch.equal(torch.cat([first, second], dim=1), whole) and torch.equal(last, end)
    for rows in ([0], [32], list(range(7)), list(range(5, 22))):
        alone, _ = ways(kinematics, begin[rows], acted[rows])
        assert torch.equal(alone, whole[rows])


def test_gripper_stays_in_its_range_and_opens_again_at_once():
    begin, acted = poses(1), torch.zeros(1, 40, 7)
    acted[..., 6] = 1.0
    acted[:, 20:, 6] = -1.0
    opening = ways(arm(), begin, acted)[0][0, :, 6]
    assert opening[19].item() == pytest.approx(0.02) and opening[-1].item() == pytest.approx(0.98)
    assert opening.min() >= 0.02 - 1e-6 and opening.max() <= 0.98 + 1e-6 and opening[21] > 0.1


@KINDS
def test_a_gripper_is_stopped_on_its_way_down_and_rises_from_there(kinematics):
    begin, acted = poses(3), torch.zeros(3, 8, 7)
    acted[:, :5, 2], acted[:, 5:, 2] = -1.0, 1.0
    free, _ = ways(kinematics, begin, acted)
    deep = free[..., 2].amin(1)
    lowest = torch.stack([deep[0] + 0.02, begin[1, 2] + 0.01, torch.tensor(-torch.inf)])
    found, motion = kinematics.follow(begin, kinematics.rest(begin), acted, lowest)
    z = found[..., 2]
    assert z[0].amin() == pytest.approx(lowest[0].item(), abs=1e-6) and z[0, -1] > lowest[0] + 0.02
    assert z[1].amin() >= begin[1, 2] - 1e-6  # it is below already: it does not go down, and nothing lifts it
    assert torch.equal(found[2], free[2])
    told = kinematics.after_move(found[:, -2], acted[:, -1], found[:, -1])
    torch.testing.assert_close(told, motion, rtol=0, atol=2e-6)


@KINDS
def test_motion_is_told_by_the_last_move(kinematics):
    begin, acted = poses(9), actions(9, 3)
    found, motion = ways(kinematics, begin, acted)
    told = kinematics.after_move(found[:, 1], acted[:, 2], found[:, 2])
    torch.testing.assert_close(told, motion, rtol=0, atol=2e-6)


def test_arm_moves_by_place_within_its_reach():
    """In the middle of the reach as one that moves the same everywhere; beyond the reach as at its border."""
    low, high = map(np.array, arm_by_place().reach)
    begin = torch.tensor([*(low + high) / 2, 3.1, 0.1, 0.0, 0.98]).float().repeat(4, 1)
    begin[:, 0] = torch.tensor([0.1, 0.2, 0.25, 0.4])
    ahead = torch.zeros(4, 1, 7)
    ahead[..., 0] = ahead[..., 6] = -1.0
    at_rest = torch.zeros(4, 7)
    moves = arm_by_place().follow(begin, at_rest, ahead)[0][:, 0, :3] - begin[:, :3]
    same = arm().follow(begin, at_rest, ahead)[0][:, 0, :3] - begin[:, :3]
    farther = torch.tensor([1.0, 1.2, 1.3, 1.3])[:, None].expand(4, 3)
    torch.testing.assert_close(moves / same, farther, rtol=1e-3, atol=0)


def test_action_that_is_repeated_leads_where_as_many_equal_actions_lead():
    begin, acted = poses(9), actions(9, 4)
    thrice = replace(arm(), repeat=3)
    found, motion = ways(thrice, begin, acted)
    steps, last = ways(arm(), begin, acted.repeat_interleave(3, dim=1))
    assert torch.equal(found, steps[:, 2::3]) and torch.equal(motion, last)


def test_motion_of_a_repeated_action_is_told_by_an_even_move():
    diagonal = FittedKinematics(0.01 * np.eye(7), 0 * np.eye(7), 0.5 * np.eye(7), (0.0,) * 7, (0.0, 1.0), repeat=2)
    before, still = torch.zeros(7), torch.zeros(7)
    after = torch.tensor([0.04, 0, 0, 0, 0, 0, 0])
    assert diagonal.after_move(before, still, after)[0].item() == pytest.approx(0.01)  # half of a move of 2 cm


def test_recordings_of_such_an_arm_give_its_numbers_back():
    found, true = fit_kinematics(recorded(12)), arm()
    for name in ("step", "after", "inertia", "drift", "opening"):
        size = np.abs(np.array(getattr(true, name)))
        assert getattr(found, name) == pytest.approx(np.array(getattr(true, name)), abs=2e-3 * size.max() + 1e-5), name
    distance, turn = chunk_errors(found, recorded(5, seed=1), chunk=8)
    assert distance.shape == turn.shape == (35, 8)
    assert distance.max() < 1e-4 and turn.max() < 1e-3


def test_recordings_of_an_arm_that_moves_by_place_tell_how():
    shown, held_out = recorded(40, kinematics=arm_by_place()), recorded(5, seed=1, kinematics=arm_by_place())
    found, _ = chunk_errors(fit_kinematics(shown, by_place=True), held_out)
    same, _ = chunk_errors(fit_kinematics(shown), held_out)
    assert found[:, -1].mean() < 0.004 < 0.01 < same[:, -1].mean()


def test_places_that_do_not_vary_are_refused():
    with pytest.raises(UserError, match="at least 760 are needed"):
        fit_kinematics(recorded(12), by_place=True)
    with pytest.raises(UserError, match="there are 0 steps in which an action follows another; at least 760"):
        fit_kinematics(recorded(1, steps=1), by_place=True)
    level = [(np.c_[p[:, :2], 0.01 * p[:, 2:3], p[:, 3:]], acted) for p, acted in recorded(14)]
    with pytest.raises(UserError, match=r"gripper's z varies by 0\.. cm in these recordings"):
        fit_kinematics(level, by_place=True)


def test_errors_are_the_distances_to_what_was_recorded():
    wrong = replace(arm(), drift=(0.003, 0.0, 0.004, *arm().drift[3:]))
    episodes = recorded(3, steps=20)
    distance, turn = chunk_errors(replace(arm()), episodes, chunk=1)
    assert distance.shape == (60, 1) and distance.max() < 1e-5 and turn.max() < 1e-4
    off = np.subtract(wrong.drift, arm().drift)[:3]
    distance, _ = chunk_errors(wrong, episodes, chunk=1)
    assert distance == pytest.approx(np.full((60, 1), np.linalg.norm(off)), rel=1e-2)


def test_what_contacts_stop_counts_less():
    episodes, draw = recorded(12), np.random.default_rng(0)
    for proprio, _ in episodes:  # in a tenth of the steps something pushes the arm away, and it stays there
        pushes = np.zeros_like(proprio[:, :3])
        pushes[draw.choice(60, 6, replace=False) + 1] = draw.uniform(-0.03, 0.03, (6, 3))
        proprio[:, :3] += pushes.cumsum(0)
    distance, _ = chunk_errors(fit_kinematics(episodes), recorded(5, seed=1), chunk=8)
    assert distance[:, -1].mean() < 0.005


def changed(column, value):
    """Recordings of an arm that is given `value` (a number, or another column) for one number of the action."""
    episodes = []
    for proprio, acted in recorded():
        acted = acted.copy()
        acted[:, column] = acted[:, value] if isinstance(value, int) else value
        start = torch.from_numpy(proprio[:1])
        after, _ = ways(arm(), start, torch.from_numpy(acted)[None])
        episodes.append((np.concatenate([proprio[:1], after[0].numpy()]), acted))
    return episodes


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, 0.0, "the action dy is always 0 in these recordings"),
        (6, 1.0, "the action close is always -1 in these recordings"),
        (3, 4, "the action drx always changes with dry, or follows from"),
    ],
)
def test_recordings_that_do_not_determine_the_fit_are_refused(column, value, message):
    with pytest.raises(UserError, match=message):
        fit_kinematics(changed(column, value))


def test_axis_that_never_moves_is_named():
    episodes = recorded()
    for proprio, _ in episodes:
        proprio[:, 2] = 0.2
    with pytest.raises(UserError, match="the move of z is always 0 in these recordings.*episodes in which it changes"):
        fit_kinematics(episodes)


def test_what_are_no_pairs_of_arrays_is_refused():
    with pytest.raises(UserError, match="there are no episodes to fit"):
        fit_kinematics([])
    with pytest.raises(UserError, match=r"episode 1 is a str; it should be a pair of arrays: \(trajectory.proprio"):
        chunk_errors(arm(), [recorded(1)[0], "episode"])


def test_few_steps_are_refused():
    with pytest.raises(UserError, match="there are 177 steps in which an action follows another; at least 190"):
        fit_kinematics(recorded(3))
    with pytest.raises(UserError, match="chunk is 0; it should be a positive integer"):
        chunk_errors(arm(), recorded(2), 0)
    with pytest.raises(UserError, match="no episode has 61 actions"):
        chunk_errors(arm(), recorded(2), 61)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (0, np.zeros((61, 9), np.float32), r"proprio of episode 1 is \[61, 9\]; it should have 7 finite numbers"),
        (1, np.zeros((60, 7), int), r"actions of episode 1 is int64 \[60, 7\]; it should be an array of floats"),
        (1, None, "actions of episode 1 is NoneType"),
        (1, np.zeros((61, 7), np.float32), "episode 1 has 61 poses and 61 actions; there should be one more"),
        (0, np.full((61, 7), np.nan, np.float32), "should have 7 finite numbers"),
    ],
)
def test_what_is_no_episode_is_refused(part, value, message):
    episodes = recorded(3)
    episodes[1] = tuple(value if i == part else array for i, array in enumerate(episodes[1]))
    with pytest.raises(UserError, match=message):
        fit_kinematics(episodes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("step", np.zeros((6, 7)), r"step of the kinematics is .* should be finite numbers \[7, 7\]"),
        ("drift", "abcdefg", "drift of the kinematics"),
        ("after", np.full((7, 7), np.inf), "after of the kinematics"),
        ("drift", None, "drift of the kinematics"),
        ("repeat", 0, "repeat of the kinematics is 0; it should be a positive integer"),
        ("repeat", True, "repeat of the kinematics"),
        ("opening", (1.0, 0.0), "the least should be below the greatest"),
        ("inertia", np.eye(7), "a motion grow by itself, by 1.00 with each action"),
        ("reach", ((0.0,) * 3, (1.0,) * 3), r"step of the kinematics is .* should be finite numbers \[7, 28\]"),
    ],
)
def test_numbers_that_describe_no_arm_are_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        FittedKinematics(**asdict(arm()) | {field: value})


def test_numbers_by_place_that_describe_no_arm_are_refused():
    with pytest.raises(UserError, match="reach of the kinematics is .*; the least x, y, z should be below"):
        replace(arm_by_place(), reach=((0.0,) * 3, (1.0, 0.0, 1.0)))
    with pytest.raises(UserError, match="a motion grow by itself, by 1.* with each action"):
        replace(arm_by_place(), reach=((-0.05, -0.15, 0.05), (0.25, 0.15, 4.0)))
    inertia = np.zeros((7, 28))  # fades at all corners of the reach, and grows in its middle
    inertia[0, 1], inertia[1, 0], inertia[0, 8], inertia[1, 7] = 1.05, 1.05, 1.0, -1.0
    with pytest.raises(UserError, match="a motion grow by itself, by 1.05 with each action"):
        replace(arm_by_place(), inertia=inertia, reach=((-1.0,) * 3, (1.0,) * 3))


def test_correction_adds_what_its_network_says_up_to_most():
    """As torch's own layers compute it, here for the first action of an arm at rest."""
    kinematics, begin, acted = arm_with_correction(), poses(50), actions(50, 1)
    at_rest, layers = kinematics.rest(begin), []
    for matrix in map(torch.tensor, kinematics.correction):
        layers.append(torch.nn.Linear(matrix.shape[1] - 1, len(matrix)))
        layers[-1].weight.data, layers[-1].bias.data = matrix[:, :-1], matrix[:, -1]
    network = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1], torch.nn.SiLU(), layers[2])
    seen = torch.cat([part[:, :6] for part in (commanded(acted[:, 0]).float(), at_rest, begin)], dim=1)
    said = network(seen).detach()
    most = torch.tensor(kinematics.most)
    added = kinematics.follow(begin, at_rest, acted)[0] - arm().follow(begin, at_rest, acted)[0]
    torch.testing.assert_close(added[:, 0, :3], said.clamp(-most, most)[:, :3], rtol=0, atol=1e-6)
    assert not added[:, 0, 6].any()
    assert (said.abs() > most)[:, :3].any() and (said.abs() < most)[:, :3].any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"most": None}, "have one of correction and most; they should have both or neither"),
        ({"correction": ((1.0,) * 19,) * 31}, "it should be three matrices"),
        ({"correction": (((0.0,) * 19,) * 31,) * 3}, "has 31 hidden units; they should be a multiple of 32"),
        ({"correction": (((0.0,) * 19,) * 32,) * 3}, r"should be finite numbers \[32, 33\]"),
        ({"most": (0.1,) * 7}, r"most of the kinematics is .* should be finite numbers \[6\]"),
        ({"most": (-0.1,) * 6}, "no number of it should be negative"),
    ],
)
def test_correction_of_another_shape_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(arm_with_correction(), **change)


def test_other_sizes_are_refused_as_by_the_exact_kinematics():
    with pytest.raises(ValueError, match="proprio has 9 numbers and an action 7; these kinematics are of 7 and 7"):
        arm().follow(torch.zeros(2, 9), torch.zeros(2, 7), torch.zeros(2, 4, 7))


def test_exact_kinematics_have_no_motion():
    begin, acted = poses(3), actions(3, 4)
    assert Kinematics().rest(begin) is None
    found, motion = Kinematics().follow(begin, None, acted)
    assert motion is None and torch.equal(found, chunk_kinematics(begin, acted, Kinematics()))


def test_robot_takes_both_kinds():
    robot = replace(moved_gripper(Kinematics()), kinematics=arm())
    assert robot.kinematics == arm()
    with pytest.raises(UserError, match="a str; it should be a Kinematics, FittedKinematics or None"):
        replace(robot, kinematics="fitted")
