"""Touching, grasping, carrying and letting go, each in a scene of its own."""

import numpy as np
import pytest

from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.physics import Tabletop, task_by_name
from worldenv.suites.tabletop.scenes import FAMILIES, KINDS, SIZES, TASKS

STEP = 0.035  # metres per unit action


def entity(kind, x, y, z=0.0, yaw=0.0, size=None):
    return [KINDS.index(kind), 0, x, y, z, yaw, *(size or SIZES[kind])]


def scene(*entities, hand=(0.0, 0.0, 0.15), aperture=1.0, family="place", goal=1):
    env = Tabletop(16, threads=1)
    env.reset([TASKS[0]], [0], "train")
    state = np.zeros((1, 79))
    state[0, :3], state[0, 6:8], state[0, 12:15] = hand, (aperture, -1), (FAMILIES.index(family), 0, goal)
    state[0, 15:].reshape(8, 8)[: len(entities)] = entities
    env.restore(state)
    return env


def thing(env, i=0):  # x, y, z
    return env.state()[0, 15:].reshape(8, 8)[i, 2:5]


def held(env):
    return int(env.state()[0, 7])


def act(env, close, target=None):
    way = np.zeros(3) if target is None else (np.array(target) - env.state()[0, :3]) / STEP
    action = np.zeros((1, 7))
    action[0, :3], action[0, 6] = way / max(1.0, np.abs(way).max()), 1 if close else -1
    return bool(env.step(action)[0])


def go(env, target, close, steps=20):
    for _ in range(steps):
        act(env, close, target)
    assert env.proprio()[0, :3] == pytest.approx(target, abs=1e-5)


def grasp(env, x, y, z=0.022):
    go(env, (x, y, 0.09), close=False)
    go(env, (x, y, z), close=False)
    for _ in range(3):
        act(env, close=True)
    return held(env)


@pytest.mark.parametrize(
    ("kind", "offset", "yaw", "z", "index"),
    [
        ("block", 0.0, 0.0, 0.022, 0),
        ("block", 0.012, 0.0, 0.022, 0),
        ("block", -0.012, 0.0, 0.022, 0),
        ("block", 0.014, 0.0, 0.022, -1),
        ("block", -0.014, 0.0, 0.022, -1),
        ("block", 0.0, 0.45, 0.022, 0),
        ("block", 0.0, 0.55, 0.022, -1),
        ("block", 0.0, np.pi / 2 + 0.1, 0.022, 0),  # a quarter turn looks the same
        ("can", 0.0, 0.75, 0.022, 0),  # a can has no yaw
        ("block", 0.0, 0.0, 0.035, 0),
        ("block", 0.0, 0.0, 0.037, -1),  # fingertips too high
    ],
)
def test_grasp_needs_alignment(kind, offset, yaw, z, index):
    env = scene(entity(kind, 0.05, 0.03, yaw=yaw))
    assert grasp(env, 0.05, 0.03 + offset, z) == index


def test_turned_gripper_grasps_a_block_turned_alike():
    env = scene(entity("block", 0.0, 0.0, yaw=0.7))
    state = env.state()
    state[0, 5] = 0.7
    env.restore(state)
    assert grasp(env, 0.0, 0.0) == 0


def test_open_gripper_holds_nothing():
    env = scene(entity("block", 0.0, 0.0))
    go(env, (0.0, 0.0, 0.022), close=False)
    assert held(env) == -1


def test_puck_is_not_grasped_even_if_it_would_fit():
    size = SIZES["can"]
    assert grasp(scene(entity("can", 0.0, 0.0, size=size)), 0.0, 0.0) == 0
    assert grasp(scene(entity("puck", 0.0, 0.0, size=size)), 0.0, 0.0) == -1
    assert grasp(scene(entity("puck", 0.0, 0.0)), 0.0, 0.0, 0.012) == -1


def test_held_object_follows_the_gripper():
    env = scene(entity("block", 0.0, 0.0))
    assert grasp(env, 0.0, 0.008) == 0
    go(env, (0.1, 0.1, 0.12), close=True)
    assert thing(env) == pytest.approx([0.1, 0.092, 0.12 - 0.022], abs=1e-9)


@pytest.mark.parametrize("direction", [(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (0.6, -0.8)])
def test_closed_fingers_push_a_puck_ahead_of_them(direction):
    way = np.array(direction)
    env = scene(entity("puck", 0.0, 0.03), hand=(*(np.array([0.0, 0.03]) - 0.08 * way), 0.012), aperture=0.0)
    go(env, (*(np.array([0.0, 0.03]) + 0.02 * way), 0.012), close=True)
    moved = thing(env)[:2] - (0.0, 0.03)
    assert moved @ way == pytest.approx(0.02 + 0.042 + 0.007, abs=0.013)
    assert abs(moved @ (-way[1], way[0])) < 0.03  # the finger that touches first turns it a little aside


def test_fingers_above_a_puck_do_not_push_it():
    env = scene(entity("puck", 0.0, 0.03), hand=(0.0, -0.05, 0.025), aperture=0.0)
    go(env, (0.0, 0.05, 0.025), close=True)
    assert thing(env).tolist() == [0.0, 0.03, 0.0]


@pytest.mark.parametrize(("z", "pushed"), [(0.022, True), (0.1, False)])
def test_carried_object_pushes_what_it_meets_and_passes_over_what_is_lower(z, pushed):
    env = scene(entity("block", 0.0, -0.1), entity("can", 0.0, 0.0))
    assert grasp(env, 0.0, -0.1) == 0
    go(env, (0.0, -0.1, z), close=True)
    go(env, (0.0, 0.0, z), close=True)
    assert (np.hypot(*(thing(env, 1) - thing(env))[:2]) > 0.04) == pushed
    assert (thing(env, 1)[1] > 0.03) == pushed
    assert held(env) == 0


def test_pushed_object_pushes_the_next_one():
    env = scene(entity("puck", 0.0, -0.02), entity("block", 0.0, 0.06), hand=(0.0, -0.12, 0.012), aperture=0.0)
    go(env, (0.0, 0.0, 0.012), close=True)
    assert thing(env, 1)[1] > 0.08
    assert np.hypot(*(thing(env, 1) - thing(env))[:2]) > 0.042 + 0.022 - 0.006


@pytest.mark.parametrize(("below", "rest"), [((), 0.0), ((entity("block", 0.1, 0.1),), 0.044)])
def test_released_object_falls_to_its_support(below, rest):
    env = scene(entity("block", 0.0, 0.0), *below)
    assert grasp(env, 0.0, 0.0) == 0
    go(env, (0.0, 0.0, 0.15), close=True)
    go(env, (0.1, 0.1, 0.15), close=True)
    height = [thing(env)[2]]
    assert height[0] == pytest.approx(0.128)
    for _ in range(4):
        act(env, close=False)
        height.append(thing(env)[2])
    assert held(env) == -1
    assert height[-1] == pytest.approx(rest, abs=1e-9)
    assert (np.diff(height) <= 0).all()
    assert height[2] < height[1]


def test_held_object_is_not_pressed_through_its_support():
    env = scene(entity("block", 0.0, 0.0), entity("block", 0.1, 0.1))
    assert grasp(env, 0.0, 0.0) == 0
    go(env, (0.0, 0.0, 0.12), close=True)
    go(env, (0.1, 0.1, 0.12), close=True)
    go(env, (0.1, 0.1, 0.04), close=True)
    assert thing(env) == pytest.approx([0.1, 0.1, 0.044], abs=1e-6)
    assert thing(env, 1) == pytest.approx([0.1, 0.1, 0.0], abs=1e-6)


@pytest.mark.parametrize(("start", "inside"), [(-0.1, False), (0.0, True)])
def test_rim_of_a_tray_keeps_things_out_and_in(start, inside):
    tray = entity("tray", 0.0, 0.05)
    env = scene(entity("block", 0.0, 0.05 + start), tray, hand=(0.0, 0.0 + start, 0.012), aperture=0.0)
    go(env, (0.0, 0.08 if inside else 0.0, 0.012), close=True)
    assert (abs(thing(env)[1] - 0.05) < 0.055) == inside


def test_nothing_leaves_the_table():
    env = scene(entity("puck", 0.0, 0.15), hand=(0.0, 0.05, 0.012), aperture=0.0)
    go(env, (0.0, 0.21, 0.012), close=True)
    assert thing(env)[1] == 0.23


@pytest.mark.parametrize(
    ("family", "moved", "goal", "expected"),
    [
        ("place", entity("block", 0.032, 0.0), entity("pad", 0.0, 0.0), True),
        ("place", entity("block", 0.034, 0.0), entity("pad", 0.0, 0.0), False),
        ("place", entity("block", 0.0, 0.0, z=0.01), entity("pad", 0.0, 0.0), False),
        ("push", entity("puck", 0.0, -0.032), entity("pad", 0.0, 0.0), True),
        ("push", entity("puck", 0.0, -0.034), entity("pad", 0.0, 0.0), False),
        ("stack", entity("can", 0.02, 0.0, z=0.044), entity("block", 0.0, 0.0), True),
        ("stack", entity("can", 0.023, 0.0, z=0.044), entity("block", 0.0, 0.0), False),
        ("stack", entity("can", 0.0, 0.0, z=0.05), entity("block", 0.0, 0.0), False),
        ("stack", entity("can", 0.05, 0.0), entity("block", 0.0, 0.0), False),
        ("put-into", entity("can", 0.05, -0.05), entity("tray", 0.0, 0.0), True),
        ("put-into", entity("can", 0.0, 0.057), entity("tray", 0.0, 0.0), False),
        ("put-into", entity("can", 0.0, 0.0, z=0.03), entity("tray", 0.0, 0.0), False),
    ],
)
def test_success_is_what_the_task_says(family, moved, goal, expected):
    env = scene(moved, goal, family=family)
    assert env.success().tolist() == [expected]
    state = env.state()
    state[0, 7] = 0  # still in the hand
    env.restore(state)
    assert env.success().tolist() == [False]


@pytest.mark.parametrize("name", ["red-block-on-green-pad", "red-can-on-purple-block", "white-can-in-tray"])
def test_success_is_undone_by_taking_the_object_away(name):
    env, task = Tabletop(16, threads=1), task_by_name(name)
    env.reset([task], [3], "test")
    for _ in range(40):
        env.step(expert_action(env))
    assert env.success().tolist() == [True]
    x, y, z = thing(env, task.object)
    go(env, (*env.state()[0, :2], 0.14), close=False)
    go(env, (x, y, 0.14), close=False)
    go(env, (x, y, z + 0.025), close=False)
    for _ in range(3):
        success = act(env, close=True)
    assert held(env) == task.object and not success
    go(env, (x, y, 0.15), close=True)
    go(env, (-0.02, -0.14, 0.15), close=True)
    for _ in range(5):
        success = act(env, close=False)
    assert held(env) == -1 and not success
    assert thing(env, task.object)[2] == 0.0


def test_push_success_is_undone_by_pushing_further():
    env, task = Tabletop(16, threads=1), task_by_name("green-puck-to-cyan-pad")
    env.reset([task], [3], "test")
    for _ in range(40):
        env.step(expert_action(env))
    assert env.success().tolist() == [True]
    x, y, _ = thing(env, task.object)
    go(env, (x + 0.08, y, 0.08), close=True)
    go(env, (x + 0.08, y, 0.012), close=True)
    go(env, (x, y, 0.012), close=True)
    assert env.success().tolist() == [False]
