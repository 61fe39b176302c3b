"""Rollouts on the tabletop: the engine, keys, decoding, practice; training, and back to a folder.

Training that is interrupted: tests/worlds/test_released_parts.py.
"""

import copy

import pytest
import torch

import worldenv
from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.world import WorldModel
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import post_train
from worldenv.training.train_video import learning, video_loss
from worldenv.training.windows import steps_of

SEED = 3


@pytest.fixture(scope="module")
def starts(tabletop):
    return tabletop.reset(tabletop.tasks[:8], range(8), "train")


def test_the_engine_holds_64_episodes_and_one_is_the_same_alone(tiny, load, starts):
    world = load(steps=1)
    assert isinstance(world, WorldModel)
    whole = tiny.engine(horizon=8, world=world, size=64).run(starts, 8, SEED, stop=False, video=True)
    assert len(whole) == 64 and not whole.broken.any() and (whole.chunks == 2).all()
    alone = tiny.engine(horizon=8, world=world, capacity=2, batch=1, size=64)
    some = alone.run(starts.pick(torch.tensor([5])), 3, SEED, first_episode=40, stop=False, video=True)
    assert ((some.video.int() - whole.video[40:43].int()).abs() <= 2).float().mean() > 0.999
    assert (whole.video[40].int() - whole.video[41].int()).abs().max() > 3  # siblings draw other noise


def test_a_policy_practises_in_it(tiny, load, starts, tmp_path):
    policy = tiny.policy()
    before = copy.deepcopy(policy)
    engine = tiny.engine(horizon=4, world=load(steps=1), policy=policy, size=64)
    config = PostTrainConfig(iterations=1, starts=2, siblings=3, signal=0.0, learning_rate=1e-2, warmup=1)
    with RunFolder.create(tmp_path / "run", {}) as folder:
        counts = post_train(engine, starts, config, folder, seed=0)
    assert counts["skipped_steps"] == counts["broken_episodes"] == 0
    assert any(not torch.equal(a, b) for a, b in zip(policy.trainable(), before.trainable(), strict=True))


def imagined(world, starts, chunk=4):
    torch.manual_seed(6)
    n = len(starts)
    action, key = 2 * torch.rand(n, chunk, 7) - 1, Key(1, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    memory = world.begin(starts.seen, chunk)
    return world.imagine(memory, starts.seen, action, key), memory


def test_only_the_frame_that_the_policy_looks_at_is_decoded(load, starts):
    some = starts.pick(torch.arange(2))
    (every, memory), (last, other) = (imagined(load(decode=decode), some, 8) for decode in ("all", "last"))
    assert torch.equal(memory.latents, other.latents) and torch.equal(memory.poses, other.poses)
    assert ((last.frames[:, -1].int() - every.frames[:, -1].int()).abs() <= 1).all()
    assert (last.frames[:, :-1] == some.seen.frames[:, None]).all()
    assert torch.equal(memory.poses[:, 1:], every.proprio[:, -2:])
    assert torch.equal(memory.latents[:, 0], imagined(load(), some)[1].latents[:, 0])  # the first frame stays


def test_what_is_not_finite_ends_the_episode(load, starts):
    world = load(steps=1)
    world.network.unet.conv_out.bias.data[0] = torch.nan
    found, _ = imagined(world, starts.pick(torch.arange(2)))
    assert not found.finite.any()


def test_chunks_that_are_no_whole_passes_and_unknown_cameras_are_refused(load, starts):
    with pytest.raises(UserError, match="imagines 4 frames per pass; a chunk should be a multiple of that, not 6"):
        load().begin(starts.seen, 6)
    some = starts.pick(torch.arange(1))
    some.seen.camera = None
    with pytest.raises(UserError, match="draws the gripper; the observation has no camera matrix"):
        load().begin(some.seen, 4)


@pytest.fixture(scope="module")
def clips(tiny):
    return Clips.of([tiny.trajectory(9, 0, size=64), tiny.trajectory(12, 1, size=64)])


def test_training_lowers_the_loss_and_frozen_parts_stay(load, clips, starts, tmp_path, tabletop):
    world = load()
    network = learning(world.network)
    loss, before = video_loss(network, clips, batch=4), copy.deepcopy(network.state_dict())
    learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer, seen = torch.optim.Adam(learns, 3e-3), []
    for _ in range(12):
        value, figures = loss(torch.Generator().manual_seed(7))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(value.item())
    assert seen[-1] < 0.8 * seen[0] and figures["mse"] > 0
    assert network.unet.conv_in.weight.grad[:, 8:].abs().sum((0, 2, 3)).min() > 0  # mask and action map
    assert network.place.grad.abs().min() > 0
    assert all(p.weight.grad.abs().max() > 0 for p in network.conditioning.projections.values())
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("tokenizer.", "conditioning.encoders.")) for name in changed)
    folder = world.write_back(tmp_path / "deep" / "back")
    again = worldenv.load(world=f"svd:{folder}").world
    assert again.network.unet.config.in_channels == 13 and again.config == world.config
    some = starts.pick(torch.arange(2))
    (mine, _), (its, _), (old, _) = (imagined(one, some) for one in (world, again, load()))
    assert torch.equal(mine.frames, its.frames) and not torch.equal(mine.frames, old.frames)
    with pytest.raises(UserError, match="back is there already"):
        world.write_back(folder)


def test_examples_have_the_memory_that_a_rollout_would_have():
    index = steps_of(torch.tensor([2, 0, 5]), torch.tensor([2, 7, 6]), memory=4, chunk=2)
    assert index.tolist() == [[2, 2, 2, 2, 3, 4], [0, 5, 6, 7, 8, 9], [5, 5, 5, 6, 7, 8]]


def test_clips_that_cannot_teach_are_refused(tiny, load, clips):
    network = load().network
    with pytest.raises(UserError, match="longest clip has 3 steps; a chunk is 4"):
        video_loss(network, Clips.of([tiny.trajectory(3, size=64)]), 2)
    with pytest.raises(UserError, match=r"frames are \(16, 16\); the world model's are 64 pixels"):
        video_loss(network, Clips.of([tiny.trajectory(9)]), 2)
