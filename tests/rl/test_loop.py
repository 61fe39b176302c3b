"""LOOP: interruptions that leave no trace, other starts in every iteration, and only the policy learns."""

import math
from dataclasses import replace

import pytest
import torch

from worldenv.errors import UserError
from worldenv.policy.laplace import LaplacePolicy
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
def test_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path, same_weights, monkeypatch, moment):
    from worldenv.rl import loop as module

    folder, whole = RunFolder.create(tmp_path / "whole", {}), tiny.engine(horizon=8)
    counts = post_train(whole, tiny.starts(6), CONFIG, folder, seed=4)
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
            post_train(part, tiny.starts(6), CONFIG, broken, seed=4)
    broken.close()
    again, resumed = RunFolder.resume(tmp_path / "part", {}), tiny.engine(horizon=8)
    assert post_train(resumed, tiny.starts(6), CONFIG, again, seed=4) == counts
    assert same_weights(resumed.policy, whole.policy) and not same_weights(whole.policy, tiny.policy())
    assert figures(again) == figures(folder) and len(figures(folder)) == 3
    assert counts["groups"] == 9 and counts["broken_episodes"] == 0


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
    assert post_train(tiny.engine(horizon=8), tiny.starts(6), CONFIG, RunFolder.resume(path, {}), seed=4) == whole


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
