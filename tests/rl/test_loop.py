"""LOOP: interruptions that leave no trace, other starts in every iteration, and only the policy learns."""

import math
from dataclasses import replace

import pytest
import torch

from worldenv.errors import UserError
from worldenv.policy.laplace import LaplacePolicy
from worldenv.records.checkpoint import CheckpointError, load_state, save_state
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.loop import STAGE, post_train

CONFIG = PostTrainConfig(iterations=3, starts=3, siblings=4, learning_rate=1e-3, minibatch=16, signal=1e-6)


def figures(folder):
    skip = ("time_s", "rollout_s", "update_s")
    return [{k: v for k, v in line.items() if k not in skip} for line in folder.metrics(STAGE)]


@pytest.mark.parametrize(
    "moment", ["before the line is written", "before the state is saved", "after the state is saved"]
)
@pytest.mark.parametrize("critic", [False, True])
def test_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path, same_weights, monkeypatch, moment, critic):
    from worldenv.rl import practice_state as module

    folder, whole = RunFolder.create(tmp_path / "whole", {}), tiny.engine(horizon=8)
    config = replace(CONFIG, critic=critic)
    counts = post_train(whole, tiny.starts(6), config, folder, seed=4)
    broken, part = RunFolder.create(tmp_path / "part", {}), tiny.engine(horizon=8)
    with monkeypatch.context() as patch:
        name, owner = ("log", broken) if moment == "before the line is written" else ("save_state", module)
        original, calls = getattr(owner, name), []

        def die_in_the_second(*arguments, **parts):
            calls.append(1)
            if len(calls) == 2 and not moment.startswith("after"):
                raise KeyboardInterrupt
            original(*arguments, **parts)
            if len(calls) == 2:
                raise KeyboardInterrupt

        patch.setattr(owner, name, die_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            post_train(part, tiny.starts(6), config, broken, seed=4)
    broken.close()
    again, resumed = RunFolder.resume(tmp_path / "part"), tiny.engine(horizon=8)
    assert post_train(resumed, tiny.starts(6), config, again, seed=4) == counts
    assert same_weights(resumed.policy, whole.policy) and not same_weights(whole.policy, tiny.policy())
    assert figures(again) == figures(folder) and len(figures(folder)) == 3
    assert counts["groups"] == 9 and counts["broken_episodes"] == 0


def test_looks_at_practice_are_logged_and_change_nothing(tiny, tmp_path, same_weights):
    plain, looked_at, calls = tiny.engine(horizon=8), tiny.engine(horizon=8), []

    def validate():
        calls.append(len(calls))
        looked_at.run(tiny.starts(5), 1, 9, explore=False)
        return {"validation_success": 0.1 * len(calls)}

    folders = [RunFolder.create(tmp_path / name, {}) for name in ("plain", "looked at")]
    config = replace(CONFIG, iterations=5)
    post_train(plain, tiny.starts(6), config, folders[0], 4, validate)  # every 0: never
    assert not calls
    post_train(looked_at, tiny.starts(6), config, folders[1], 4, validate, every=2)
    lines = folders[1].metrics(STAGE)
    assert [line.get("validation_success") for line in lines] == [None, 0.1, None, 0.2, None]
    assert all((line.get("validate_s") is not None) == ("validation_success" in line) for line in lines)
    assert same_weights(plain.policy, looked_at.policy)


def test_doubt_changes_practice_by_the_guard_and_without_one_no_bit(tiny, tmp_path, same_weights, monkeypatch):
    def practised(name, guard, doubt):
        engine, folder = tiny.engine(horizon=8), RunFolder.create(tmp_path / name, {})
        original, share = engine.world.imagine, torch.linspace(0, 0.9, 7)

        def imagine(memory, seen, action, key):
            return replace(original(memory, seen, action, key), doubt=doubt * share[key.episode % 7])

        monkeypatch.setattr(engine.world, "imagine", imagine)
        post_train(engine, tiny.starts(6), replace(CONFIG, guard=guard), folder, 4)
        return engine.policy, [line["unsure"] for line in folder.metrics(STAGE)]

    (sure, low), (off, high) = practised("sure", 0.0, 0.0), practised("off", 0.0, 1.0)
    assert same_weights(sure, off) and all(a < b for a, b in zip(low, high, strict=True))
    assert not same_weights(off, practised("on", 1.0, 1.0)[0])


def test_another_engine_imagines_from_the_iteration_on_before_which_it_is_given(tiny, tmp_path):
    def practise(name, world):
        policy, folder, asked = tiny.policy(), RunFolder.create(tmp_path / name, {}), []
        other = tiny.engine(horizon=8, policy=policy, world=world)

        def renew(iteration):
            asked.append(iteration)
            return other if iteration == 1 else None

        post_train(tiny.engine(horizon=8, policy=policy), tiny.starts(6), CONFIG, folder, 4, renew=renew)
        lines = figures(folder)
        assert asked == [0, 1, 2] and [line.pop("refresh_s", -1) >= 0 for line in lines] == [False, True, False]
        return lines

    plain = RunFolder.create(tmp_path / "plain", {})
    post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, plain, 4)
    assert practise("same", tiny.world()) == figures(plain)
    first, *later = practise("other", tiny.world(seed=7))
    assert first == figures(plain)[0]
    assert all(new["reward"] != old["reward"] for new, old in zip(later, figures(plain)[1:], strict=True))


def test_skipped_updates_are_counted_across_an_interruption(tiny, tmp_path, monkeypatch):
    def nowhere(policy, record, *rest):
        mu, _ = policy.heads(record.feature, record.proprio)
        return mu.mean() * math.nan, torch.zeros(())

    monkeypatch.setattr(LaplacePolicy, "ppo_loss", nowhere)
    whole = post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, RunFolder.create(tmp_path / "whole", {}), seed=4)
    path = tmp_path / "part"
    first = PostTrainConfig(**{**vars(CONFIG), "iterations": 1})
    part = post_train(tiny.engine(horizon=8), tiny.starts(6), first, RunFolder.create(path, {}), seed=4)
    assert 0 < part["skipped_steps"] < whole["skipped_steps"]
    assert post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, RunFolder.resume(path), seed=4) == whole


def test_only_the_policy_learns(tiny, tmp_path, same_weights):
    engine = tiny.engine(horizon=8)
    post_train(engine, tiny.starts(6), CONFIG, RunFolder.create(tmp_path / "run", {}), seed=4)
    assert same_weights(engine.world.network, tiny.simulator()) and same_weights(engine.reflector, tiny.reflector())


def test_iterations_practise_from_other_starts_with_other_draws(tiny, tmp_path, monkeypatch):
    engine, asked = tiny.engine(horizon=4), []
    run = engine.run

    def spy(starts, siblings, seed, first_episode):
        asked.append((starts.seen.proprio, seed, first_episode))
        return run(starts, siblings, seed, first_episode=first_episode)

    monkeypatch.setattr(engine, "run", spy)
    post_train(engine, tiny.starts(50), CONFIG, RunFolder.create(tmp_path / "run", {}), seed=4)
    assert [(seed, first) for _, seed, first in asked] == [(4, 0), (4, 12), (4, 24)]
    assert not torch.equal(asked[0][0], asked[1][0])


def test_a_policy_that_cannot_be_updated_is_refused_before_any_rollout(tiny, tmp_path, monkeypatch):
    engine = tiny.engine()
    monkeypatch.setattr(engine.policy, "trainable", lambda: [])
    monkeypatch.setattr(engine, "run", None)
    with pytest.raises(UserError, match="the policy has no trainable parameters: its `trainable` returned none"):
        post_train(engine, tiny.starts(3), CONFIG, RunFolder.create(tmp_path / "run", {}), 0)


def test_a_policy_that_records_nothing_to_learn_from_is_refused(tiny, tmp_path, monkeypatch):
    engine = tiny.engine(horizon=8)
    act = engine.policy.act
    monkeypatch.setattr(engine.policy, "act", lambda *given: replace(act(*given), record=None))
    with pytest.raises(UserError, match="the policy cannot be trained: its `act` returned a decision whose"):
        post_train(engine, tiny.starts(3), CONFIG, RunFolder.create(tmp_path / "run", {}), 0)


def test_an_iteration_of_broken_episodes_alone_ends_the_run(tiny, tmp_path, monkeypatch):
    engine, folder = tiny.engine(horizon=8), RunFolder.create(tmp_path / "run", {})
    judge = engine.reflector.judge

    def broken(*given):
        reward, stop = judge(*given)
        return reward / 0, stop

    monkeypatch.setattr(engine.reflector, "judge", broken)
    with pytest.raises(UserError, match="in iteration 1 no imagined episode was finite"):
        post_train(engine, tiny.starts(3), CONFIG, folder, 0)


def test_iterations_in_which_no_group_has_signal_say_what_to_lower(tiny, tmp_path):
    config = replace(CONFIG, iterations=1, signal=1.0)
    with pytest.warns(UserWarning, match="iteration 1 taught nothing: .* differ by --rl.signal, 1.0; lower it"):
        post_train(tiny.engine(horizon=8), tiny.starts(6), config, RunFolder.create(tmp_path / "run", {}), seed=4)


def other_file(tmp_path, tiny, name="other", seed=4, policy_seed=0):
    """The folder of a run of one iteration, which is over."""
    with RunFolder.create(tmp_path / name, {}) as folder:
        engine = tiny.engine(horizon=8, seed=policy_seed)
        post_train(engine, tiny.starts(6), replace(CONFIG, iterations=1), folder, seed)
    return folder


def resumed(tiny, path, config=CONFIG):
    with RunFolder.resume(path) as folder:
        return post_train(tiny.engine(horizon=8), tiny.starts(6), config, folder, seed=4)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"seed": 5}, "it has the seed 5, this run has 4"), ({"policy_seed": 1}, "its model began with other weights")],
)
def test_state_of_another_run_is_refused_before_anything_changes(tiny, tmp_path, same_weights, other, message):
    run, foreign = other_file(tmp_path, tiny), other_file(tmp_path, tiny, "foreign", **other)
    state = run.checkpoints / f"{STAGE}.state.safetensors"
    state.write_bytes((foreign.checkpoints / state.name).read_bytes())
    lines, engine = figures(run), tiny.engine(horizon=8)
    with RunFolder.resume(run.path) as folder, pytest.raises(CheckpointError, match=message):
        post_train(engine, tiny.starts(6), CONFIG, folder, seed=4)
    assert same_weights(engine.policy, tiny.policy()) and figures(run) == lines


def changed(state, name, value):
    parts = load_state(state)
    if callable(value):
        value(parts[name])
    else:
        parts[name] = value
    save_state(state, **parts)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("run", None, "not a state of this stage and version"),
        ("policy", [], "not a state of this stage and version"),
        ("iteration", True, "not a state of this stage and version"),
        ("iteration", 0, "has 0 iterations, and the run is to have 3"),
        ("iteration", 4, "has 4 iterations, and the run is to have 3"),
        ("counts", {"groups": 1}, "its counts are damaged"),
        ("counts", lambda counts: counts.update(groups=-1), "its counts are damaged"),
        ("policy", lambda policy: policy.popitem(), "does not fit SmallPolicy; missing in the file"),
        ("policy", lambda policy: policy.update(more=torch.zeros(1)), "in the file but not in the module: more"),
        ("optimizer", lambda optimizer: optimizer.update(param_groups=[]), "its optimizer does not fit"),
        ("optimizer", lambda optimizer: optimizer["param_groups"][0]["params"].pop(), "its optimizer does not fit"),
        ("optimizer", lambda optimizer: optimizer["state"].update({99: {}}), "its optimizer does not fit"),
        ("optimizer", lambda optimizer: optimizer["state"][0].pop("exp_avg"), "its optimizer does not fit"),
        ("optimizer", lambda optimizer: optimizer["state"][0].update(exp_avg=torch.zeros(1)), "its optimizer does not"),
    ],
)
def test_state_that_does_not_fit_the_run_is_refused(tiny, tmp_path, name, value, message):
    run = other_file(tmp_path, tiny)
    changed(run.checkpoints / f"{STAGE}.state.safetensors", name, value)
    with pytest.raises(CheckpointError, match=rf"{STAGE}.state.safetensors: .*{message}"):
        resumed(tiny, run.path)


def test_metrics_that_are_not_those_of_the_state_are_named(tiny, tmp_path):
    run = other_file(tmp_path, tiny)
    metrics = run.path / "metrics.jsonl"
    line = metrics.read_text()
    for text in ("", 3 * line, line.replace('"step": 0', '"step": 1')):
        metrics.write_text(text)
        with pytest.raises(UserError, match="metrics.jsonl does not have one line for each of the 1 iterations that"):
            resumed(tiny, run.path)


def test_state_that_was_removed_lets_practice_begin_again_and_says_so(tiny, tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as folder:
        counts = post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, folder, seed=4)
    whole = figures(folder)
    (folder.checkpoints / f"{STAGE}.state.safetensors").unlink()
    with pytest.warns(UserWarning, match="post_train.state.safetensors is missing: practice begins again"):
        assert resumed(tiny, folder.path) == counts
    assert figures(folder) == whole


def test_episodes_in_which_nothing_is_held_earn_nothing_where_holds_are_needed(tiny, tmp_path, monkeypatch):
    engine, folder = tiny.engine(horizon=8), RunFolder.create(tmp_path / "run", {})
    plain, reward = engine.run, []

    def run(*arguments):
        out = plain(*arguments)
        out.held[::2] = True  # the smallest models never hold anything
        reward.append(out.final_reward().clone())
        return out

    monkeypatch.setattr(engine, "run", run)
    post_train(engine, tiny.starts(6), replace(CONFIG, iterations=1, needs_hold=True), folder, seed=4)
    (line,) = folder.metrics(STAGE)
    assert line["reward"] == pytest.approx(reward[0][::2].sum().item() / len(reward[0]))
    assert reward[0].min() > 0
