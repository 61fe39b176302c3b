"""The engine on the causal world model: rings live in the slots, and recycling changes no episode."""

import pytest
import torch

from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.replay import replay
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld

SEED, SIZE = 11, 16


def make_world(cache="float", dtype=torch.float32):
    config = CausalConfig(
        image_size=SIZE,
        patch=4,
        map_shrink=2,
        channels=16,
        window=4,
        width=32,
        layers=2,
        heads=2,
        key_heads=1,
        cache=cache,
    )
    torch.manual_seed(0)
    network = CausalNetwork(config).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not name.startswith("tokenizer."):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return CausalWorld(network.to(dtype), moved_gripper(Kinematics()))


@pytest.mark.parametrize(
    ("cache", "dtype"),
    [("float", torch.float32), ("int8", torch.float32), ("int8", torch.bfloat16), ("float", torch.float16)],
)
def test_an_episode_is_the_same_in_one_slot_of_few_alone_on_other_threads_and_among_all(tiny, cache, dtype):
    starts, world = tiny.starts(5), make_world(cache, dtype)
    whole = tiny.engine(horizon=20, world=world).run(starts, 3, SEED)
    assert len(whole.chunks.unique()) > 1  # some stop, so slots are recycled and gaps closed
    few = tiny.engine(horizon=20, world=world, capacity=4, batch=3).run(starts, 3, SEED)
    alone = tiny.engine(horizon=20, world=world).run(starts.pick(torch.tensor([3])), 1, SEED, first_episode=10)
    torch.set_num_threads(3)
    try:
        threads = tiny.engine(horizon=20, world=world, capacity=7, batch=2).run(starts, 3, SEED)
    finally:
        torch.set_num_threads(1)
    # Levels of an 8-bit ring, and numbers of 16 bits, may fall either way when sums round otherwise.
    tolerance = 1e-3 if (cache, dtype) == ("float", torch.float32) else 0.05
    for other, rows in ((few, slice(None)), (threads, slice(None)), (alone, slice(10, 11))):
        for name in ("chunks", "stop"):
            assert torch.equal(getattr(other, name), getattr(whole, name)[rows])
        for name in ("reward", "action"):
            torch.testing.assert_close(getattr(other, name), getattr(whole, name)[rows], rtol=0, atol=tolerance)


def test_chunks_that_are_no_whole_passes_are_refused(tiny):
    with pytest.raises(UserError, match="imagines 4 frames per pass; a chunk should be a multiple of that, not 6"):
        tiny.engine(world=make_world(), policy=tiny.policy(chunk=6)).run(tiny.starts(1), 1, SEED)
    twice = tiny.engine(world=make_world(), policy=tiny.policy(chunk=8)).run(tiny.starts(1), 1, SEED, stop=False)
    assert twice.action.shape[2] == 8 and not twice.broken.any()


def test_somebody_elses_loop_sees_the_engines_episodes(tiny):
    engine, starts = tiny.engine(horizon=12, world=make_world()), tiny.starts(6)
    expected = engine.run(starts, 1, SEED, stop=False, video=True)
    env = WorldModelEnv(engine.world, engine.reflector, starts, EnvConfig(envs=6, horizon=12))
    env.seed(SEED)
    env.reset(starts=torch.arange(6))
    compared = 0
    for chunk in range(3):
        going = ~env.standing.done
        observation, *_ = env.step(expected.action[:, chunk])
        going &= ~env.standing.terminated  # which shows the frame at the stop, not that at the chunk's end
        torch.testing.assert_close(observation["frames"][going], expected.video[going, 4 * chunk + 4], rtol=0, atol=1)
        compared += int(going.sum())
    assert compared >= 2


def test_bytes_of_a_slot_are_those_of_its_ring_and_little_else(tiny):
    engine = tiny.engine(horizon=20, world=make_world("int8"))
    slot, _ = engine.bytes_per_episode(tiny.starts(1))
    config = engine.world.network.config
    ring = 2 * config.layers * config.key_heads * config.places * (config.head + 4)
    assert ring < slot < ring + 4000


def test_replay_of_the_actions_of_an_episode_shows_its_frames(tiny):
    engine, starts = tiny.engine(horizon=12, world=make_world()), tiny.starts(2)
    episodes = engine.run(starts, 1, SEED, stop=False, video=True)
    again = replay(engine.world, starts, episodes.action.flatten(1, 2), SEED)
    assert ((again.int() - episodes.video.int()).abs() <= 1).float().mean() > 0.999
