"""The causal world model behind its interface: which chunks it takes, and passes of longer ones."""

import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.world import WorldModel
from worldenv.ops.action_map import action_map
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld, draw_maps

CONFIG = CausalConfig(image_size=16, patch=4, map_shrink=2, channels=16, width=32, layers=1, heads=2, key_heads=1)


@pytest.fixture
def world():
    torch.manual_seed(0)
    return CausalWorld(CausalNetwork(CONFIG).eval().requires_grad_(False), moved_gripper(Kinematics()))


@pytest.fixture
def seen(tiny):
    return tiny.starts(3).seen


def key(count, chunk):
    return Key(2, torch.arange(count), torch.full((count,), chunk))


def test_it_is_a_world_model_of_the_device_of_its_network(world):
    assert isinstance(world, WorldModel) and world.device == torch.device("cpu") and world.levels == (1.0, 0.5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_chunks_that_are_no_whole_passes_are_refused(world, seen, chunk):
    with pytest.raises(
        UserError, match=f"imagines 4 frames per pass; a chunk should be a multiple of that, not {chunk}"
    ):
        world.begin(seen, chunk)


def test_observation_without_a_camera_is_refused(world, seen):
    seen.camera = None
    with pytest.raises(UserError, match="the causal world model draws the gripper; the observation has no camera ma"):
        world.begin(seen, 4)


def test_chunk_of_two_passes_is_two_chunks_of_one(world, seen):
    action = 2 * torch.rand(3, 8, 7, generator=torch.Generator().manual_seed(1)) - 1
    whole = world.imagine(world.begin(seen, 8), seen, action, key(3, 0))
    memory, now, parts = world.begin(seen, 4), seen.each(torch.clone), []
    for chunk in range(2):
        parts.append(world.imagine(memory, now, action[:, 4 * chunk : 4 * chunk + 4], key(3, chunk)))
        now.frames, now.proprio = parts[-1].frames[:, -1], parts[-1].proprio[:, -1]
    assert whole.frames.shape == (3, 8, 1, 16, 16, 3) and whole.finite.all()
    assert torch.equal(whole.frames, torch.cat([part.frames for part in parts], 1))
    assert torch.equal(whole.proprio, torch.cat([part.proprio for part in parts], 1))


def test_gripper_goes_where_the_kinematics_say(world, seen):
    action = 2 * torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(1)) - 1
    imagined = world.imagine(world.begin(seen, 4), seen, action, key(3, 0))
    assert torch.equal(imagined.proprio, chunk_kinematics(seen.proprio, action, Kinematics()))


def test_memory_keeps_no_view_of_the_observation(world, seen):
    memory = world.begin(seen, 4)
    before = memory.keys.clone()
    for tensor in (seen.frames, seen.proprio):
        tensor.zero_()
    places = slice(0, CONFIG.tokens)  # the others are not written yet
    assert torch.equal(memory.keys[..., places, :], before[..., places, :])


def test_maps_are_those_of_a_camera_whose_pixels_are_larger(world, seen):
    poses = seen.proprio[:, None].repeat(1, 2, 1)
    camera = seen.camera.clone()
    camera[:, :, :2] /= CONFIG.map_shrink
    maps = draw_maps(poses, seen.camera, world.robot, CONFIG)
    assert maps.shape == (3, 2, 4, 8, 8)
    torch.testing.assert_close(maps[:, 1], action_map(poses[:, 1], camera, world.robot.gripper, 8, 8)[:, 0])
