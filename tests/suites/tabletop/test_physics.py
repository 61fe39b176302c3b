"""The simulator as its users see it: deterministic, saved exactly, drawn where things are, clear when misused."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.suites.tabletop import physics
from worldenv.suites.tabletop.expert import expert_action
from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import TASKS

METAL = np.array([70, 72, 78])  # fingers, before shading
COLOR = {"red": (210, 45, 45), "blue": (45, 85, 210), "yellow": (235, 200, 40), "green": (50, 165, 70)}


def begun(worlds=10, size=16, threads=1, split="train"):
    env = Tabletop(size, threads=threads)
    env.reset([TASKS[i % len(TASKS)] for i in range(worlds)], range(worlds), split)
    return env


def actions(worlds, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, worlds, 7)).astype(np.float32)


def played(env, moves):  # frames, states, success after every move
    return [(env.step(move), env.frames(), env.state())[::-1] for move in moves]


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def same_hue(pixel, color, tolerance=0.06):
    pixel, color = np.asarray(pixel, float), np.asarray(color, float)
    return np.abs(pixel / pixel.max() - color / color.max()).max() < tolerance


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_starts_and_actions_give_the_same_bits_whatever_the_threads(threads):
    moves = actions(41, 15)
    once = played(begun(41, size=24, threads=1), moves)
    assert same(once, played(begun(41, size=24, threads=threads), moves))
    assert not np.array_equal(once[0][1], once[-1][1])


def test_world_moves_alike_alone_and_in_a_batch():
    moves = actions(20, 15)
    together, alone = played(begun(20), moves), Tabletop(16, threads=1)
    alone.reset([TASKS[3]], [13], "train")
    for move, (state, frame, _) in zip(moves, together, strict=True):
        alone.step(move[13:14])
        assert np.array_equal(alone.state()[0], state[13]) and np.array_equal(alone.frames()[0], frame[13])


def test_restored_state_continues_bit_for_bit_here_and_in_another_object():
    env, other = begun(), begun(split="test")
    for _ in range(9):
        env.step(expert_action(env))
    saved, moves = env.state(), actions(10, 12, seed=3)
    assert (saved[:, 7] >= 0).any()  # something is held
    first = played(env, moves)
    for again in (env, other):
        again.restore(saved)
        assert np.array_equal(again.state(), saved)
        assert same(first, played(again, moves))


def test_saved_state_is_a_copy():
    env = begun(1)
    saved = env.state()
    before = saved.copy()
    env.step(np.ones((1, 7)))
    assert np.array_equal(saved, before)


def test_inactive_worlds_do_not_move_and_are_not_drawn():
    env, active = begun(), np.arange(10) % 3 == 0
    state, frames = env.state(), env.frames()
    for move in actions(10, 6):
        env.step(move, active)
    changed = (env.state() != state).any(axis=1)
    assert np.array_equal(changed, active)
    after = env.frames(out=frames.copy(), active=active)
    assert np.array_equal((after != frames).any(axis=(1, 2, 3)), active)
    assert not env.frames(active=active)[~active].any()


def test_success_is_returned_for_every_world_also_the_inactive():
    env = begun()
    for _ in range(40):
        expected = env.step(expert_action(env), ~env.success())
        assert np.array_equal(env.success(), expected)
    assert expected.all()


@pytest.mark.parametrize("size", [16, 64, 256])
def test_fingers_are_drawn_where_the_camera_sees_the_proprioception(size):
    env = begun(24, size=size)
    for move in actions(24, 4, seed=5) * (0.5, 0.5, 0, 1, 1, 1, 1):
        env.step(move)
        frames, poses = env.frames(), env.proprio().astype(float)
        for frame, bare, pose in zip(frames, without_gripper(env), poses, strict=True):
            axis = rotation(pose[3:6])
            for side in (-1, 1):
                finger = pose[:3] + side * (0.012 + 0.033 * pose[6]) * axis[:, 0] + 0.02 * axis[:, 2]
                x, y = env.camera.project(finger)[0]
                near = np.s_[int(y - 0.5) : int(y + 1.5), int(x - 0.5) : int(x + 1.5)]
                darkest = frame[near].reshape(-1, 3)[frame[near].sum(2).argmin()]
                assert np.abs(frame[near].astype(int) - bare[near]).max() > 8
                assert size == 16 or (darkest.max() < 90 and same_hue(darkest, METAL, 0.2))


def without_gripper(env):
    state = env.state()
    away = state.copy()
    away[:, :3] = (0.0, -5.0, -5.0)
    env.restore(away)
    frames = env.frames()
    env.restore(state)
    return frames


def rotation(axis_angle):  # Rodrigues
    angle = np.linalg.norm(axis_angle)
    x, y, z = axis_angle / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("size", [64, 256])
def test_things_are_drawn_in_their_color_where_they_are(size):
    env, item = Tabletop(size, threads=1), TASKS[0].items
    env.reset([TASKS[0]] * 8, range(8), "train")
    state = env.state()
    state[:, :3] = (0.19, 0.21, 0.2)  # out of the way
    env.restore(state)
    for frame, row in zip(env.frames(), state[:, 15:].reshape(8, 8, 8), strict=True):
        for i in (0, 1, 2, 3):  # two blocks, a can and a pad
            x, y = env.camera.project(row[i, 2:5] + (0, 0, row[i, 7]))[0]
            assert same_hue(frame[int(y), int(x)], COLOR[item[i].color])
        x, y = env.camera.project(np.array([-0.2, -0.1, 0.0]))[0]
        assert same_hue(frame[int(y), int(x)], (186, 164, 138))  # bare table


def test_sizes_show_the_same_picture():
    moves, picture = actions(10, 5), {}
    for size in (16, 64, 256):
        env = begun(size=size)
        for move in moves:
            env.step(move)
        frames = env.frames()
        assert frames.shape == (10, size, size, 3) and frames.dtype == np.uint8
        picture[size] = frames.reshape(10, 16, size // 16, 16, size // 16, 3).mean(axis=(2, 4))
    assert np.abs(picture[64] - picture[256]).mean() < 1
    assert np.abs(picture[16] - picture[256]).mean() < 3
    assert picture[64].std() > 20


def test_every_pixel_of_given_frames_is_written():
    env = begun(size=33)
    for fill in (0, 255):
        out = np.full((10, 33, 33, 3), fill, dtype=np.uint8)
        assert env.frames(out=out) is out
        assert np.array_equal(out, env.frames())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((2, 16, 16, 3)), r"out is float64 \[2, 16, 16, 3\]; expected contiguous, writable uint8"),
        (np.zeros((2, 16, 16, 4), np.uint8)[..., :3], "contiguous, writable"),
        (np.zeros((3, 16, 16, 3), np.uint8), r"out is uint8 \[3, 16, 16, 3\]; expected .* \[2, 16, 16, 3\]"),
        (np.frombuffer(bytes(2 * 16 * 16 * 3), np.uint8).reshape(2, 16, 16, 3), "writable"),
    ],
)
def test_frames_that_cannot_be_written_in_place_are_refused(out, message):
    with pytest.raises(UserError, match=message):
        begun(2).frames(out=out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_action_that_is_not_finite_names_its_worlds_and_moves_nothing(value):
    env, move = begun(), np.zeros((10, 7), dtype=np.float32)
    before = env.state()
    move[[2, 7], [0, 6]] = value
    with pytest.raises(UserError, match=r"actions holds NaN or infinity in worlds \[2, 7\]; check the policy's output"):
        env.step(move)
    assert np.array_equal(env.state(), before)


@pytest.mark.parametrize("shape", [(9, 7), (10, 6), (7,), (10, 1, 7)])
def test_actions_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"actions has shape \[.*\]; expected \[10, 7\]"):
        begun().step(np.zeros(shape))


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"active has shape \[3 \], expected \[10 \]"):
        begun().step(np.zeros((10, 7)), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="active has shape"):
        begun().frames(active=np.ones((10, 1), dtype=bool))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("step", (np.zeros((1, 7)),)), ("success", ()), ("frames", ()), ("state", ()), ("restore", (np.zeros((0, 79)),))],
)
def test_call_before_reset_is_refused(name, arguments):
    with pytest.raises(UserError, match=rf"{name} was called before reset; call reset\(tasks, starts, split\) first"):
        getattr(Tabletop(16), name)(*arguments)


def test_reset_wants_as_many_starts_as_tasks_and_at_least_one():
    with pytest.raises(UserError, match="reset got 2 tasks and 3 starts; give one start for each task"):
        Tabletop(16).reset(TASKS[:2], range(3), "train")
    with pytest.raises(UserError, match="reset got 0 tasks and 0 starts"):
        Tabletop(16).reset([], [], "train")


@pytest.mark.parametrize("size", [15, 257, 0, -64])
def test_image_size_out_of_range_is_refused(size):
    with pytest.raises(UserError, match=rf"image_size is {size}; it must lie between 16 and 256"):
        Tabletop(size)


@pytest.mark.parametrize("shape", [(9, 79), (10, 78), (79,), (10, 80)])
def test_state_of_another_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"state must be finite float64 \[10, 79\], got \["):
        begun().restore(np.zeros(shape))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (7, 99, r"held = 99 in world 4; expected a whole number from -1 to 7; pass what state\(\) returned"),
        (7, -2, "held = -2 in world 4"),
        (12, 4, "family = 4 in world 4; expected a whole number from 0 to 3"),
        (13, 8, "object = 8 in world 4; expected a whole number from 0 to 7"),
        (14, -1, "goal = -1 in world 4"),
        (15, 77, "kind = 77 in world 4; expected a whole number from 0 to 5"),
        (15 + 7 * 8, -1, "kind = -1 in world 4"),
        (24, 50, "color = 50 in world 4; expected a whole number from 0 to 7"),
        (24, 1.5, "color = 1.5 in world 4"),
        (0, np.nan, "state must be finite"),
        (30, np.inf, "state must be finite"),
    ],
)
def test_corrupt_state_is_refused_and_changes_nothing(column, value, message):
    env = begun()
    before = env.state()
    corrupt = before.copy()
    corrupt[4, column] = value
    with pytest.raises(UserError, match=message):
        env.restore(corrupt)
    assert np.array_equal(env.state(), before)


def test_the_suite_takes_as_many_threads_as_torch_may_use_now(monkeypatch):
    asked = []
    monkeypatch.setattr(physics._tabletop, "Simulator", lambda worlds, size, threads, *others: asked.append(threads))
    env = Tabletop(16)
    for threads in (3, 1):
        torch.set_num_threads(threads)
        try:
            with pytest.raises(AttributeError):  # no simulator to restore
                env.reset(TASKS[:1], [0], "train")
        finally:
            torch.set_num_threads(1)
    assert asked == [3, 1]


WITHOUT_THREADS = """
import resource
from worldenv.suites.tabletop.physics import TASKS, Tabletop
def drawn(threads):
    env = Tabletop(16, threads=threads)
    env.reset([TASKS[i % 10] for i in range(640)], range(640), "train")
    return env.frames()
expected = drawn(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20),) * 2)  # each thread wants megabytes of stack
print((drawn(64) == expected).all())
"""


def test_threads_that_cannot_start_leave_their_work_to_those_that_run():
    done = subprocess.run([sys.executable, "-P", "-c", WITHOUT_THREADS], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
