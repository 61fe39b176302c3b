"""Rollouts on the tabletop: the engine, keys, latents instead of frames, and a policy that practises."""

import copy
from dataclasses import replace

import pytest
import torch

import worldenv
from worldenv.data.formats.rlinf import RlinfConfig
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import post_train
from worldenv.rollout.replay import replay
from worldenv.worlds.wan.world import load_wan

SEED = 3


@pytest.fixture(scope="module")
def starts(tabletop):
    return tabletop.reset(tabletop.tasks[:8], range(8), "train")


def test_the_engine_holds_64_episodes_and_one_is_the_same_alone(tiny, load, starts):
    world, policy = load(), tiny.policy(chunk=8)
    engine = tiny.engine(horizon=16, world=world, policy=policy, size=64)
    whole = engine.run(starts, 8, SEED, stop=False, video=True)
    assert len(whole) == 64 and not whole.broken.any() and (whole.chunks == 2).all()
    alone = tiny.engine(horizon=16, world=world, policy=policy, capacity=2, batch=1, size=64)
    some = alone.run(starts.pick(torch.tensor([5])), 3, SEED, first_episode=40, stop=False, video=True)
    rows = slice(40, 43)
    assert ((some.video.int() - whole.video[rows].int()).abs() <= 2).float().mean() > 0.999
    torch.testing.assert_close(some.action, whole.action[rows], atol=1e-2, rtol=0)
    assert (whole.video[40].int() - whole.video[41].int()).abs().max() > 3  # siblings draw other noise
    latents = 48 * 2 * 4 * 4 * 4
    slot, _ = engine.bytes_per_episode(starts)
    assert latents + 2 * 64 * 64 * 3 < slot < latents + 2 * 64 * 64 * 3 + 2000


def test_a_policy_practises_in_it(tiny, load, starts, tmp_path):
    policy = tiny.policy(chunk=8)
    before = copy.deepcopy(policy)
    world = load(steps=1)
    kept = copy.deepcopy(world.network.state_dict())
    engine = tiny.engine(horizon=8, world=world, policy=policy, size=64)
    config = PostTrainConfig(iterations=1, starts=2, siblings=3, signal=0.0, learning_rate=1e-2, warmup=1)
    with RunFolder.create(tmp_path / "run", {}) as folder:
        counts = post_train(engine, starts, config, folder, seed=0)
    assert counts["skipped_steps"] == counts["broken_episodes"] == 0
    learnt = [not torch.equal(a, b) for a, b in zip(policy.trainable(), before.trainable(), strict=True)]
    assert any(learnt)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in world.network.state_dict().items())


def test_the_pair_is_named_by_its_folder(tiny, written, tmp_path):
    tiny.save(tmp_path)
    torch.manual_seed(0)
    named = {part: f"rlinf-wan:{written}" for part in ("world", "reflector")}
    parts = worldenv.load(tmp_path, **named)
    assert parts.world.config.steps == 2 and parts.world.views == ("agentview",)
    parts.policy = tiny.policy(chunk=8)
    starts = worldenv.practice_starts(parts.suite, seed=0).pick(torch.arange(2))
    rollouts = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=8)).run(starts, 2, seed=0)
    assert not rollouts.broken.any() and 0 < rollouts.reward.min() < rollouts.reward.max() < 1


def imagined(world, starts, chunk):
    torch.manual_seed(6)
    n = len(starts)
    action, key = 2 * torch.rand(n, chunk, 7) - 1, Key(1, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    memory = world.begin(starts.seen, chunk)
    return world.imagine(memory, starts.seen, action, key), memory


def test_frames_are_decoded_only_where_somebody_looks(load, starts, monkeypatch):
    some = starts.pick(torch.arange(2))
    every, last = (load(context="latents", decode=decode) for decode in ("all", "last"))
    decoded = []
    for world in (every, last):
        vae = world.network.vae
        monkeypatch.setattr(
            vae, "decode", lambda *given, real=vae.decode, **more: decoded.append(1) or real(*given, **more)
        )
    (wanted, memory), (found, other) = (imagined(world, some, 24) for world in (every, last))
    assert len(decoded) == 3 + 1
    assert memory.first is None and torch.equal(memory.latents, other.latents)
    assert torch.equal(found.frames[:, 16:], wanted.frames[:, 16:])
    assert (found.frames[:, :16] == some.seen.frames[:, None]).all()
    assert torch.equal(found.proprio, wanted.proprio)


def test_a_context_of_latents_is_near_that_of_frames_and_not_it(load, starts):
    some = starts.pick(torch.arange(2))
    (latents, _), (frames, memory) = (imagined(load(context=context), some, 16) for context in ("latents", "frames"))
    assert torch.equal(latents.frames[:, :8], frames.frames[:, :8])
    assert not torch.equal(latents.frames[:, 8:], frames.frames[:, 8:])
    assert torch.equal(memory.first, some.seen.frames[:, 0]) and memory.first.data_ptr() != some.seen.frames.data_ptr()


def test_turned_pictures_are_turned_before_and_after(load, starts):
    some = starts.pick(torch.arange(2))
    mirrored = replace(some, seen=replace(some.seen, frames=some.seen.frames.flip(-2)))
    (wanted, _), (found, _) = (imagined(load(), mirrored, 8), imagined(load(orientation="turned"), some, 8))
    assert torch.equal(found.frames, wanted.frames.flip(-2))


def test_a_replay_repeats_the_episode(tiny, load, starts):
    world, some = load(steps=1), starts.pick(torch.arange(2))
    engine = tiny.engine(horizon=16, world=world, policy=tiny.policy(chunk=8), size=64)
    episodes = engine.run(some, 1, SEED, stop=False, video=True)
    again = replay(world, some, episodes.action.flatten(1, 2), SEED)
    assert ((again.int() - episodes.video.int()).abs() <= 1).float().mean() > 0.999


def test_what_is_not_finite_ends_the_episode(load, starts):
    world = load(steps=1)
    world.network.transformer.proj_out.bias.data[0] = torch.nan
    found, _ = imagined(world, starts.pick(torch.arange(2)), 8)
    assert not found.finite.any() and found.frames.dtype == torch.uint8


def test_half_precision_is_as_stored_or_as_asked(load, starts, written, tabletop):
    world = load_wan(written, tabletop, RlinfConfig(**{"size": 64, "head": 12, "steps": 1, "dtype": "bfloat16"}))
    assert {p.dtype for p in world.network.parameters()} == {torch.bfloat16}
    found, memory = imagined(world, starts.pick(torch.arange(2)), 8)
    assert found.finite.all() and memory.latents.dtype == torch.bfloat16


def test_chunks_that_are_no_whole_passes_are_refused(load, starts):
    with pytest.raises(UserError, match="imagines 8 frames per pass; a chunk should be a multiple of that, not 4"):
        load().begin(starts.seen, 4)
