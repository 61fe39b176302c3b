"""The engine on the causal simulator: rings live in the slots, and recycling changes no episode."""

import pytest
import torch

from worldenv.camera import tabletop_camera
from worldenv.kinematics import chunk_kinematics
from worldenv.simulator.causal import Causal, CausalConfig
from worldenv.simulator.causal_world import CausalWorld

SEED, SIZE = 11, 16


def make_world(cache="float"):
    config = CausalConfig(
        image_size=SIZE, patch=4, map_shrink=2, channels=16, window=4, width=32, layers=2, heads=2, key_heads=1,
        cache=cache,
    )  # fmt: skip
    torch.manual_seed(0)
    network = Causal(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not name.startswith("tokenizer."):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return CausalWorld(network, tabletop_camera(SIZE))


@pytest.mark.parametrize("cache", ["float", "int8"])
def test_an_episode_is_the_same_in_one_slot_of_few_and_among_all(tiny, cache):
    starts, world = tiny.starts(5), make_world(cache)
    whole = tiny.engine(horizon=5, world=world).run(starts, 3, SEED)
    few = tiny.engine(horizon=5, world=world, capacity=4, batch=3).run(starts, 3, SEED)
    assert len(whole.chunks.unique()) > 1  # some stop, so slots are recycled and gaps closed
    assert torch.equal(few.chunks, whole.chunks) and torch.equal(few.stop, whole.stop)
    # Levels of an 8-bit ring may fall either way when sums round otherwise.
    tolerance = 1e-3 if cache == "float" else 0.05
    torch.testing.assert_close(few.reward, whole.reward, rtol=0, atol=tolerance)
    torch.testing.assert_close(few.action, whole.action, rtol=0, atol=tolerance)


def test_bytes_of_a_slot_are_those_of_its_ring_and_little_else(tiny):
    engine = tiny.engine(horizon=5, world=make_world("int8"))
    slot, _ = engine.bytes_per_episode(tiny.starts(1))
    config = engine.world.simulator.config
    ring = 2 * config.layers * config.key_heads * config.places * (config.head + 4)
    assert ring < slot < ring + 4000


def test_replay_along_the_poses_of_an_episode_shows_its_frames(tiny):
    engine, starts = tiny.engine(horizon=3, world=make_world()), tiny.starts(2)
    episodes = engine.run(starts, 1, SEED, stop=False, video=True)
    poses = torch.cat([episodes.proprio[:, 0, None], _poses(engine, episodes)], dim=1)
    again = engine.world.replay(starts.frame, poses, SEED)
    assert ((again.int() - episodes.video.int()).abs() <= 1).float().mean() > 0.999


def _poses(engine, episodes):
    return chunk_kinematics(episodes.proprio[:, 0], episodes.action.flatten(1, 2), engine.kinematics)
