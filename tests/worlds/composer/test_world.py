"""The composer behind its interface: what it remembers, where the gripper goes, what it shares in 8 bits."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.world import WorldModel
from worldenv.nn.int8 import measured
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics, chunk_kinematics, composed
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer import world as module
from worldenv.worlds.composer.contact import FREE_M, GRASPED_WEIGHT, REST_SCALE, Scene, grasp_thresholds, look
from worldenv.worlds.composer.layer import Layer
from worldenv.worlds.composer.network import ComposerNetwork
from worldenv.worlds.composer.world import ComposerWorld

SEED = 11


@pytest.fixture
def world(tiny):
    return tiny.world()


@pytest.fixture
def seen(tiny):
    return tiny.starts(5).seen


def actions(count, chunk=4):
    return 2 * torch.rand(count, chunk, 7, generator=torch.Generator().manual_seed(1)) - 1


def key(ids, chunk=0, seed=SEED):
    return Key(seed, ids, torch.full_like(ids, chunk))


def imagined(world, seen, action, **of_key):
    return world.imagine(world.begin(seen, action.shape[1]), seen, action, key(torch.arange(len(seen)), **of_key))


def test_it_is_a_world_model_of_the_device_of_its_network(world):
    assert isinstance(world, WorldModel) and world.device == torch.device("cpu") and world.levels == (1.0, 0.5)
    world.network.to("meta")
    assert world.device == torch.device("meta")


def test_known_pictures_are_of_the_first_frame_the_present_one_and_the_layer(tiny, monkeypatch):
    engine, starts, layers, given = tiny.engine(horizon=12), tiny.starts(7), [], []
    follow, known_pictures = module.follow, module.known_pictures

    def copied(tensors):  # slots are written over
        return [tensor.clone() for tensor in tensors]

    def followed(network, layer, *rest):
        layers.append((layer.each(torch.clone), follow(network, layer, *rest), layer.each(torch.clone)))
        return layers[-1][1]

    monkeypatch.setattr(module, "follow", followed)
    monkeypatch.setattr(module, "known_pictures", lambda *known: given.append(copied(known)) or known_pictures(*known))
    video = engine.run(starts, 1, SEED, stop=False, video=True).video
    assert len(given) == 3
    for chunk, ((before, course, after), known) in enumerate(zip(layers, given, strict=True)):
        first, last, clear, mask, hidden, tips, all_places = known[:7]
        assert torch.equal(first, video[:, 0, 0]) and torch.equal(last, course.frame)
        present = video[:, 4 * chunk, 0]
        assert ((last == present) | (last == clear)).all()  # what is pushed comes from the clear frame
        scene = after.scene(starts.seen.camera[:, 0], to_frames(engine.world.network.plate[None, :, :, None])[0, 0])
        assert torch.equal(clear, scene) and torch.equal(mask, after.thing.mask)
        assert torch.equal(all_places, torch.cat([after.thing.origin[:, None], course.places], dim=1))
        assert torch.equal(hidden, course.hidden)
        assert torch.equal(tips[:, 0], starts.seen.proprio[:, :3]) and tips.shape == (7, 6, 3)
        is_clear = (tips[:, 1, 2] > CLEAR_M) & ~before.held & (mask == 0).all(2).all(1)  # and nothing is moved now
        assert is_clear.any() and torch.equal(clear[is_clear], last[is_clear])


def test_memory_keeps_no_view_of_the_observation(world, seen):
    for chunk in (4, 3):
        memory = world.begin(seen, chunk)
        before = memory.each(torch.clone)
        now = seen.each(torch.clone)
        for tensor in (seen.frames, seen.proprio):
            tensor.add_(1)
        assert all(torch.equal(a, b) for a, b in zip(memory.tensors(), before.tensors(), strict=True))
        seen = now
    assert world.begin(seen, 8).begun is None and memory.begun is not None


def test_gripper_goes_where_the_kinematics_say_and_frames_follow_the_actions(world, seen):
    action = actions(5)
    out = imagined(world, seen, action)
    assert torch.equal(out.proprio, chunk_kinematics(seen.proprio, action, Kinematics()))
    assert out.frames.shape == (5, 4, 1, 16, 16, 3) and out.frames.dtype == torch.uint8 and out.finite.all()
    other = imagined(world, seen, -action)
    assert (other.frames != out.frames).flatten(1).any(1).all()


def test_actions_beyond_the_limits_are_limited(world, seen):
    action = 3 * actions(5)
    assert torch.equal(imagined(world, seen, action).frames, imagined(world, seen, action.clamp(-1, 1)).frames)


def test_noise_depends_on_the_key(world, seen):
    out = imagined(world, seen, actions(5))
    assert torch.equal(imagined(world, seen, actions(5)).frames, out.frames)
    for other in ({"seed": SEED + 1}, {"chunk": 1}):
        assert not torch.equal(imagined(world, seen, actions(5), **other).frames, out.frames)


def test_camera_that_is_moved_sees_another_picture_and_none_is_refused(world, seen):
    out = imagined(world, seen, actions(5))
    seen.camera = seen.camera.clone()
    seen.camera[2, 0, 0, 3] += 1.0
    moved = imagined(world, seen, actions(5))
    changed = (moved.frames != out.frames).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, False, False]
    seen.camera = None
    with pytest.raises(UserError, match="the composer draws the gripper through the camera; the observation has no "):
        world.begin(seen, 4)


def test_what_is_not_finite_is_told_and_spoils_no_other(world, seen):
    action = actions(5)
    sound = imagined(world, seen, action)
    action[3, 1, 2] = float("nan")
    out = imagined(world, seen, action)
    assert out.finite.tolist() == [True, True, True, False, True]
    assert torch.equal(out.frames[:3], sound.frames[:3]) and torch.equal(out.frames[4], sound.frames[4])


def test_twin_in_8_bits_shares_the_parameters_and_leaves_the_world_as_it_was(world, seen):
    network = world.network
    with measured(network) as ranges:
        expected = imagined(world, seen, actions(5))
    small = world.in_int8(ranges)
    assert world.network is network and small.network is not network and small.robot is world.robot
    shared = dict(small.network.named_parameters())
    assert all(shared[name] is parameter for name, parameter in network.named_parameters())
    assert not torch.equal(imagined(small, seen, actions(5)).frames, expected.frames)
    assert torch.equal(imagined(world, seen, actions(5)).frames, expected.frames)


def test_a_hand_whose_axes_are_others_is_imagined_as_the_one_that_the_action_map_draws(world, seen):
    turn, network = (0.3, -0.2, 1.1), world.network
    plain = moved_gripper(Kinematics(rotation="compose"), clear_m=CLEAR_M)
    turned = replace(plain, gripper_turn=turn)
    back = -torch.tensor(turn).expand(len(seen), 3)
    reported = replace(seen, proprio=seen.proprio.clone())
    reported.proprio[:, 3:6] = composed(seen.proprio[:, 3:6], back)
    action = actions(len(seen))
    expected, found, other = (
        imagined(ComposerWorld(network, robot, (1.0,)), one, action)
        for robot, one in ((plain, seen), (turned, reported), (plain, reported))
    )
    apart = [(one.frames.int() - expected.frames).abs() for one in (found, other)]
    assert apart[0].max() <= 1 and apart[0].float().mean() < 0.01 < apart[1].float().mean()
    assert torch.equal(found.proprio[..., :3], expected.proprio[..., :3])


def test_heights_count_from_the_ground(seen):
    up, plate, low = 0.5, torch.zeros(16, 16, 3), moved_gripper(Kinematics(), clear_m=CLEAR_M)
    raised = replace(seen, proprio=seen.proprio.clone(), camera=seen.camera.clone())
    raised.proprio[:, 2] += up
    raised.camera[..., 3] -= up * seen.camera[..., 2]  # as high above the ground as before
    views = []
    for robot, now in ((low, seen), (replace(low, ground_m=up, clear_m=CLEAR_M + up), raised)):
        poses = now.proprio[:, None].repeat(1, 5, 1)
        layer = Layer.begin(now.frames[:, 0], poses[:, 0, :3])
        views.append(look(layer, now.frames[:, 0], poses, now.camera[:, 0], Scene(plate, robot)))
    torch.testing.assert_close(views[0].pictures, views[1].pictures, rtol=0, atol=2e-3)
    torch.testing.assert_close(views[0].numbers, views[1].numbers, rtol=0, atol=1e-4)


def saying(tiny, config, last, grasp=-9.0):
    """A composer whose contact network says no to all questions, but `grasp` (a logit) to grasps, and `last`."""
    network = ComposerNetwork(replace(tiny.world().network.config, **config)).eval()
    network.contact.decide[-1].weight.data.zero_()
    network.contact.decide[-1].bias.data.fill_(-9.0)
    network.contact.decide[-1].bias.data[1 : 1 + network.contact.chunk] = grasp
    network.contact.decide[-1].bias.data[-1] = last
    step, after = np.diag([0.02] * 6 + [0.2]), 0.01 * np.eye(7)  # the fingers close within three actions
    linear = {"step": tuple(map(tuple, step)), "after": tuple(map(tuple, after))}
    kinematics = FittedKinematics(**linear, inertia=linear["after"], drift=(0.0,) * 7, opening=(0.0, 1.0))
    robot = replace(moved_gripper(Kinematics(), clear_m=CLEAR_M), kinematics=kinematics)
    return ComposerWorld(network, robot, (1.0,))


def stopping(tiny, height_m):
    """A composer that stops all grippers this much above their lowest height."""
    return saying(tiny, {"stops": True}, (height_m + FREE_M) * REST_SCALE)


def test_things_stop_a_gripper_that_holds_nothing_and_it_goes_on_from_there(tiny, seen):
    down = torch.zeros(5, 8, 7)
    down[..., 2], down[..., 6] = -1.0, -1.0
    seen.proprio[:, 2] = 0.1
    free, stopped = (imagined(stopping(tiny, height), seen, down).proprio[..., 2] for height in (-1.0, 0.03))
    alone = stopping(tiny, -1.0).robot.kinematics
    torch.testing.assert_close(free, alone.follow(seen.proprio, alone.rest(seen.proprio), down)[0][..., 2])
    torch.testing.assert_close(stopped[:, 3], free[:, 3] + 0.03)
    assert (stopped[:, 4:] < stopped[:, 3:4]).all()  # in the next pass it is stopped above *its* lowest height
    world = stopping(tiny, 0.03)
    memory = world.begin(seen, 8)
    memory.layer.held[0] = True
    held = world.imagine(memory, seen, down, key(torch.arange(5))).proprio[..., 2]
    assert torch.equal(held[0, :4], free[0, :4]) and torch.equal(held[1:], stopped[1:])


def test_a_composer_that_stops_the_gripper_needs_kinematics_that_can_be_stopped(tiny):
    with pytest.raises(UserError, match="take a robot with FittedKinematics"):
        ComposerWorld(stopping(tiny, 0.0).network, moved_gripper(Kinematics(), clear_m=CLEAR_M), (1.0,))


def test_what_is_held_keeps_the_fingers_open_until_they_let_it_go(tiny, seen):
    world = saying(tiny, {"held_open": True}, 0.45, grasp=9.0)
    nothing = saying(tiny, {"held_open": True}, 0.45)
    close, release = torch.zeros(2, 5, 8, 7)
    close[..., 6], release[..., 6] = 1.0, -1.0
    seen.proprio[:, 2], seen.proprio[:, 6] = 0.02, 1.0
    empty, memory = imagined(nothing, seen, close), world.begin(seen, 8)
    free = empty.proprio
    assert free[:, -1, 6].max() < 0.3 and not empty.held.any()
    holding = world.imagine(memory, seen, close, key(torch.arange(5)))
    assert memory.layer.held.all() and torch.equal(holding.proprio[..., :6], free[..., :6])
    torch.testing.assert_close(holding.proprio[..., 6], free[..., 6].clamp(min=0.45))
    after = replace(seen, frames=holding.frames[:, -1], proprio=holding.proprio[:, -1])
    again = world.imagine(memory, after, close, key(torch.arange(5), chunk=1))
    torch.testing.assert_close(again.proprio[..., 6], torch.full((5, 8), 0.45))  # it closes no further, and holds on
    released = world.imagine(memory, after, release, key(torch.arange(5), chunk=2))
    opened = released.proprio[..., 6]
    assert not memory.layer.held.any() and not memory.layer.opening.any() and opened[:, -1].min() > 0.4
    assert holding.held.all() and again.held.all() and not released.held.any()
    torch.testing.assert_close(memory.opening, opened[:, -1])


def test_a_sampled_grasp_succeeds_as_often_as_the_contact_network_says_and_the_same_in_all_chunks(tiny, seen):
    chance, many = ComposerWorld._chance, key(torch.arange(4000))
    assert (chance(many) < 0.3).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(chance(many), chance(many._replace(chunk=many.chunk + 7)))
    assert not torch.equal(chance(many), chance(many._replace(seed=many.seed + 1)))
    even = log(GRASPED_WEIGHT)  # the logit of a grasp that succeeds as often as not
    torch.testing.assert_close(grasp_thresholds(torch.tensor([0.5, 0.75])), torch.tensor([even, even + 2 * log(3)]))
    logit = grasp_thresholds(chance(key(torch.arange(5)))).sort().values[1:3].mean().item()
    close = torch.zeros(5, 8, 7)
    close[..., 6] = 1.0
    seen.proprio[:, 2], seen.proprio[:, 6] = 0.02, 1.0
    held = []
    for samples in (False, True):
        world = saying(tiny, {"held_open": True, "samples_grasps": samples}, 0.45, grasp=logit)
        memory = world.begin(seen, 8)
        world.imagine(memory, seen, close, key(torch.arange(5)))
        held.append(memory.layer.held.sum().item())
    assert held == [5 * (logit > 0), 2]


def test_a_robot_without_clear_m_is_refused(world):
    with pytest.raises(UserError, match="needs a robot with kinematics, a gripper and `clear_m`"):
        ComposerWorld(world.network, replace(world.robot, clear_m=None), (1.0,))
