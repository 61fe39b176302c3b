"""A post-training iteration on frames of the tabletop: saved, resumed, written back and loaded again."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key, Starts, shown_to
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import post_train
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training.fit_scale import fit_scale

KINDS = ["l1", "l1, one view", "tokens"]
ONE, TWO = ("agentview",), ("agentview", "wrist")


def mirrored(frames):  # [..., 1, H, W, 3] -> [..., 2, H, W, 3]
    return torch.cat([frames, frames.flip(-2)], dim=-4)


class MirrorWorld:
    """The world model of the tabletop; its second camera is a mirror of the first."""

    views = TWO

    def __init__(self, world):
        self.world, self.chunk, self.size, self.robot, self.device = (
            world,
            world.chunk,
            world.size,
            world.robot,
            world.device,
        )

    def begin(self, seen, chunk):
        return self.world.begin(shown_to(seen, TWO, ONE), chunk)

    def imagine(self, memory, seen, action, key):
        imagined = self.world.imagine(memory, shown_to(seen, TWO, ONE), action, key)
        return replace(imagined, frames=mirrored(imagined.frames))


class FirstCamera:
    """The reflector of the tabletop, which knows one camera."""

    def __init__(self, reflector):
        self.reflector, self.read = reflector, reflector.read

    def begin(self, seen, read):
        return self.reflector.begin(shown_to(seen, TWO, ONE), read)

    def judge(self, frames, state):
        return self.reflector.judge(frames[:, :, :1].contiguous(), state)


@pytest.fixture(scope="module")
def frames_of_the_tabletop():
    """Starts of the tabletop, as policies of one view and of two see them."""
    suite = TabletopSuite()
    begun = suite.reset(suite.tasks[:4], range(4), "train")
    seen = replace(begun.seen, frames=mirrored(begun.seen.frames), camera=begun.seen.camera.expand(-1, 2, -1, -1))
    return {ONE: begun, TWO: Starts(seen, begun.texts)}


def engine_of(tiny, policy):
    world, reflector = tiny.world(size=64), tiny.reflector()
    if policy.views == TWO:
        world, reflector = MirrorWorld(world), FirstCamera(reflector)
    return Engine(policy, world, reflector, EngineConfig(horizon=16))


def practise(tiny, policy, starts, folder, iterations=1):
    engine = engine_of(tiny, policy)
    config = PostTrainConfig(
        iterations=iterations, starts=2, siblings=3, signal=0.0, learning_rate=1e-2, minibatch=6, accumulate=4, warmup=1
    )
    with folder:
        return post_train(engine, starts, config, folder, seed=0)


def acted(policy, starts, explore=False):
    count = len(starts)
    key = Key(1, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    return policy.act(starts.seen, policy.read(starts.texts), key, explore)


@pytest.mark.parametrize("kind", KINDS)
def test_one_iteration_changes_what_learns_and_nothing_else(tiny, load, frames_of_the_tabletop, tmp_path, kind):
    policy = load(kind)
    starts = frames_of_the_tabletop[policy.views]
    before = copy.deepcopy(policy)
    counts = practise(tiny, policy, starts, RunFolder.create(tmp_path / "run", {}))
    assert counts["skipped_steps"] == counts["broken_episodes"] == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["chunks"] > 0 and np.isfinite(line["loss"])
    learns = policy.state_dict().keys()
    for (name, now), (_, old) in zip(policy.named_parameters(), before.named_parameters(), strict=True):
        if name not in learns:
            assert torch.equal(now, old), name
    changed = [name for name in learns if not torch.equal(policy.state_dict()[name], before.state_dict()[name])]
    assert any("lora_B" in name for name in changed) and len(changed) > 0.4 * len(learns)
    if kind != "tokens":
        assert any("action_head" in name for name in changed) and any("scale_head" in name for name in changed)
        assert (acted(policy, starts).action - acted(before, starts).action).abs().max() > 1e-3
    else:
        moment = acted(before, starts).record
        assert (policy.log_prob(moment, None) - before.log_prob(moment, None)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_practice_goes_on_with_a_policy_made_anew(tiny, load, frames_of_the_tabletop, tmp_path, kind):
    whole = load(kind)
    starts = frames_of_the_tabletop[whole.views]
    practise(tiny, whole, starts, RunFolder.create(tmp_path / "whole", {}), iterations=2)

    class Stop(Exception):
        pass

    def stop(iteration):
        if iteration == 1:
            raise Stop

    first = load(kind)
    engine = engine_of(tiny, first)
    config = {"iterations": 2, "starts": 2, "siblings": 3, "signal": 0.0, "learning_rate": 1e-2, "minibatch": 6}
    config = PostTrainConfig(**config, accumulate=4, warmup=1)
    with RunFolder.create(tmp_path / "parts", {}) as folder, pytest.raises(Stop):
        post_train(engine, starts, config, folder, seed=0, renew=stop)
    again = load(kind)
    practise(tiny, again, starts, RunFolder.resume(tmp_path / "parts"), iterations=2)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def move(policy):
    """As if it had learnt much."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_written_back_in_its_authors_layout(load, written, moments, tmp_path, kind):
    policy, plain = move(load(kind)), load(kind)
    starts = moments(3, len(policy.views))
    folder = policy.write_back(tmp_path / "deep" / "back")
    back = load(kind, folder)
    source = written["tokens" if kind == "tokens" else "l1"]
    more = {"worldenv.json"} | ({"scale_head--150000_checkpoint.pt"} if kind != "tokens" else set())
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.path.iterdir()} | more
    assert (folder / "modeling_prismatic.py").read_text() == (source.path / "modeling_prismatic.py").read_text()
    mine, its, old = (acted(one, starts) for one in (policy, back, plain))
    if kind == "tokens":
        likely = [one._log_probs(mine.record).detach() for one in (policy, back, plain)]
        torch.testing.assert_close(likely[1], likely[0], atol=1e-4, rtol=0)
        assert (likely[2] - likely[0]).abs().max() > 0.1
    else:
        torch.testing.assert_close(its.action, mine.action, atol=1e-4, rtol=0)
        torch.testing.assert_close(its.log_prob, mine.log_prob, atol=1e-2, rtol=0)  # the scale head, too
        assert (old.action - mine.action).abs().max() > 1e-2
        state = torch.load(folder / "action_head--150000_checkpoint.pt", weights_only=True)
        assert all(name.startswith("module.") for name in state)
    before, after = source.tensors(), {k: t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "attn_pool" in name or ".blocks.2." in name} <= same  # what nothing reads
    assert "language_model.model.layers.0.mlp.up_proj.weight" not in same


def load_file(path):
    from safetensors.torch import load_file as read

    return read(path)


def test_half_precision_is_written_back_as_it_was_stored(load, moments, tmp_path, make_release):
    release = make_release(tmp_path / "half", dtype=torch.bfloat16)
    policy = move(load("l1", release.path))
    assert policy.network.dtype == torch.bfloat16
    back = policy.write_back(tmp_path / "back")
    stored = load_file(back / "model-00001-of-00002.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    starts = moments(2, 2)
    torch.testing.assert_close(acted(load("l1", back), starts).action, acted(policy, starts).action, atol=0.1, rtol=0)


def test_what_is_there_already_is_not_written_over(load, tmp_path):
    (tmp_path / "back").mkdir()
    with pytest.raises(UserError, match="back is there already; give a folder that is not"):
        load("tokens").write_back(tmp_path / "back")
    assert list(tmp_path.iterdir()) == [tmp_path / "back"]


def test_the_settings_are_written_back_with_it(load, tmp_path, one_view):
    from worldenv.policy.openvla_oft.policy import load_openvla_oft

    folder = load("l1, one view", chunk=4, scale=0.2).write_back(tmp_path / "back")
    again = load_openvla_oft(folder, one_view)
    assert (again.chunk, again.views, again.config.scale, again.config.lora) == (4, ("agentview",), 0.2, 4)


def test_only_what_learns_is_saved_and_it_belongs_to_its_checkpoint(load, written, tmp_path, make_release):
    policy = move(load("l1"))
    save_weights(tmp_path / "policy.safetensors", policy, {})
    weights, _ = load_weights(tmp_path / "policy.safetensors")
    assert "frozen" in weights and not any("base_layer" in name for name in weights)
    fresh = load("l1")
    load_weights(tmp_path / "policy.safetensors", fresh)
    for (name, one), (_, other) in zip(policy.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    other = make_release(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="were learnt on another checkpoint than that in .*other; give the folder"):
        load_weights(tmp_path / "policy.safetensors", load("l1", other.path))
    with pytest.raises(
        CheckpointError, match=r"does not fit OpenVLALaplace; shapes: .* \[4, 32\] in the file and \[5, 32\]"
    ):
        load_weights(tmp_path / "policy.safetensors", load("l1", lora=5))


def test_the_scale_is_fitted_to_demonstrations_and_the_mean_stays(tiny, load):
    policy = load("l1, one view", scale=0.4)
    clips = Clips.of([tiny.trajectory(9, 0), tiny.trajectory(12, 1)])
    before = copy.deepcopy(policy)
    first, last = fit_scale(policy, clips, steps=40, batch=8, learning_rate=1e-2)
    assert last < first - 0.05
    pairs = zip(policy.named_parameters(), before.named_parameters(), strict=True)
    changed = {name for (name, now), (_, old) in pairs if not torch.equal(now, old)}
    assert "scale_head.model.fc2.weight" in changed and all(name.startswith("scale_head.") for name in changed)
    assert not any(p.grad is not None for p in policy.parameters())
    assert [p.requires_grad for p in policy.parameters()] == [p.requires_grad for p in before.parameters()]


@pytest.mark.parametrize(
    ("kind", "steps", "message"),
    [
        ("tokens", 1, "OpenVLATokens has no scale_head"),
        ("l1", 1, "the clips lack wrist"),
        ("l1, one view", 0, "steps is 0"),
    ],
)
def test_a_scale_that_cannot_be_fitted_is_refused(tiny, load, kind, steps, message):
    with pytest.raises(UserError, match=message):
        fit_scale(load(kind), Clips.of([tiny.trajectory(9)]), steps)


def test_a_copy_of_the_folder_that_lost_a_file_leaves_nothing_behind(load, written, tmp_path):
    shutil.copytree(written["tokens"].path, tmp_path / "source")
    policy = load("tokens", tmp_path / "source")
    (tmp_path / "source" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises((UserError, OSError)):
        policy.write_back(tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
