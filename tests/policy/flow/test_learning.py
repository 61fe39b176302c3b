"""A post-training iteration on frames of the tabletop: saved, resumed, written back and loaded again."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import worldenv
from worldenv.config import released
from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.records.checkpoint import load_weights, save_weights
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import post_train
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training.fit_scale import fit_scale

KINDS = ["pi0", "smolvla"]
WAYS = [("pi0", "laplace"), ("smolvla", "laplace"), ("pi0", "sde")]


@pytest.fixture(scope="module")
def starts():
    suite = TabletopSuite()
    return suite.reset(suite.tasks[:3], range(3), "train")


def practise(tiny, policy, starts, folder, iterations=1, renew=None):
    engine = Engine(policy, tiny.world(size=64), tiny.reflector(), EngineConfig(horizon=8))
    settings = {"starts": 2, "siblings": 3, "signal": 0.0, "learning_rate": 1e-2, "minibatch": 6, "accumulate": 4}
    with folder:
        return post_train(
            engine, starts, PostTrainConfig(iterations=iterations, warmup=1, **settings), folder, seed=0, renew=renew
        )


def acted(policy, starts, explore=False):
    count = len(starts)
    key = Key(1, torch.arange(count), torch.zeros(count, dtype=torch.int64))
    return policy.act(starts.seen, policy.read(starts.texts), key, explore)


@pytest.mark.parametrize(("kind", "exploration"), WAYS)
def test_one_iteration_changes_what_learns_and_nothing_else(tiny, load, starts, tmp_path, kind, exploration):
    policy = load(kind, exploration=exploration)
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
    assert any("lora_B" in name for name in changed) and any("action_out_proj" in name for name in changed)
    assert any("scale_head" in name for name in changed) == (exploration == "laplace")
    assert (acted(policy, starts).action - acted(before, starts).action).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "exploration"), WAYS[1:])
def test_an_interrupted_practice_goes_on_with_a_policy_made_anew(tiny, load, starts, tmp_path, kind, exploration):
    whole = load(kind, exploration=exploration)
    practise(tiny, whole, starts, RunFolder.create(tmp_path / "whole", {}), iterations=2)

    class Stop(Exception):
        pass

    def stop(iteration):
        if iteration == 1:
            raise Stop

    with pytest.raises(Stop):
        first = load(kind, exploration=exploration)
        practise(tiny, first, starts, RunFolder.create(tmp_path / "parts", {}), iterations=2, renew=stop)
    again = load(kind, exploration=exploration)
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
    policy, plain, source = move(load(kind)), load(kind), written[f"{kind}1"].path
    starts, _ = moments(3)
    folder = policy.write_back(tmp_path / "deep" / "back")
    more = {"worldenv.json", "worldenv_scale_head.safetensors"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()} | more
    for name in ("config.json", "README.md", "policy_postprocessor_step_0_unnormalizer_processor.safetensors"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    mine, its, old = (acted(one, starts) for one in (policy, load(kind, folder), plain))
    torch.testing.assert_close(its.action, mine.action, atol=1e-4, rtol=0)
    torch.testing.assert_close(its.log_prob, mine.log_prob, atol=1e-2, rtol=0)  # the scale head, too
    assert (old.action - mine.action).abs().max() > 1e-2
    before, after = (load_file(path / "model.safetensors") for path in (source, folder))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("self_attn.k_proj" in name for name in changed) and any("action_out_proj.bias" in n for n in changed)
    assert all("expert" in name or "action_" in name or "state_proj" in name for name in changed)


def test_a_scale_head_that_is_not_used_is_kept(load, tmp_path):
    folder = move(load("pi0")).write_back(tmp_path / "laplace")
    again = load("pi0", folder, exploration="sde").write_back(tmp_path / "sde")
    name = "worldenv_scale_head.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_settings_are_written_back_with_it(load, tmp_path, shows):
    policy = load("smolvla", cameras=2, chunk=3, steps=2, scale=0.2, views=("wrist", "agentview"))
    again = worldenv.load_smolvla(policy.write_back(tmp_path / "back"), shows("agentview", "wrist"))
    assert (again.chunk, again.views, again.found.steps, again.config.scale) == (3, ("wrist", "agentview"), 2, 0.2)


def test_half_precision_is_written_back_as_it_was_stored(load, moments, tmp_path, make_release):
    release = make_release(tmp_path / "half", "pi0", dtype=torch.bfloat16)
    policy = move(load("pi0", release.path))
    assert policy.network.dtype == torch.bfloat16
    back = policy.write_back(tmp_path / "back")
    assert {tensor.dtype for tensor in load_file(back / "model.safetensors").values()} == {torch.bfloat16}
    starts, _ = moments(2)
    torch.testing.assert_close(acted(load("pi0", back), starts).action, acted(policy, starts).action, atol=0.1, rtol=0)


def test_what_is_there_already_is_not_written_over(load, tmp_path):
    (tmp_path / "back").mkdir()
    with pytest.raises(UserError, match="back is there already; give a folder that is not"):
        load("pi0").write_back(tmp_path / "back")
    assert list(tmp_path.iterdir()) == [tmp_path / "back"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_learns_is_saved_and_it_belongs_to_its_checkpoint(load, tmp_path, make_release, kind):
    policy = move(load(kind))
    save_weights(tmp_path / "policy.safetensors", policy, {})
    weights, _ = load_weights(tmp_path / "policy.safetensors")
    assert "frozen" in weights and not any("base_layer" in name for name in weights)
    fresh = load(kind)
    load_weights(tmp_path / "policy.safetensors", fresh)
    for (name, one), (_, other) in zip(policy.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    other = make_release(tmp_path / "other", kind, seed=1)
    with pytest.raises(UserError, match="were learnt on another checkpoint than that in .*other; give the folder"):
        load_weights(tmp_path / "policy.safetensors", load(kind, other.path))


def test_the_scale_is_fitted_to_demonstrations_and_the_mean_stays(tiny, load):
    policy = load("smolvla", scale=0.4)
    clips = Clips.of([tiny.trajectory(9, 0), tiny.trajectory(12, 1)])
    before = copy.deepcopy(policy)
    first, last = fit_scale(policy, clips, steps=30, batch=8, learning_rate=1e-2)
    assert last < first - 0.05
    pairs = zip(policy.named_parameters(), before.named_parameters(), strict=True)
    changed = {name for (name, now), (_, old) in pairs if not torch.equal(now, old)}
    assert "scale_head.outer.weight" in changed and all(name.startswith("scale_head.") for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_named_by_kind_and_folder(tiny, written, tmp_path, kind):
    tiny.save(tmp_path)
    name = f"{kind}:{written[f'{kind}1'].path}"
    assert released(name) == (kind, str(written[f"{kind}1"].path))
    parts = worldenv.load(tmp_path, policy=name)
    starts = worldenv.practice_starts(parts.suite, 0).pick(torch.arange(2))
    rollouts = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=4)).run(starts, siblings=2, seed=0)
    first = rollouts.record.each(lambda tensor: tensor[:, 0])
    again = parts.policy.log_prob(first, rollouts.action[:, 0])
    torch.testing.assert_close(again, rollouts.log_prob[:, 0], atol=1e-2, rtol=0)
    assert rollouts.record.seed.eq(0).all() and len(rollouts.record.episode.unique()) == 4
