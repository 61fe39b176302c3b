"""LOOP: advantages, the clipped loss, skipped updates, and interruptions that leave no trace."""

import math

import pytest
import torch

from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder
from worldenv.rl.loop import (
    STAGE,
    Learner,
    PostTrainConfig,
    group_advantage,
    leave_one_out,
    post_train,
)
from worldenv.rollout.episodes import Rollouts

CONFIG = PostTrainConfig(iterations=3, starts=3, siblings=4, learning_rate=1e-3, minibatch=16, signal=1e-6)


def rewarded(tiny, reward, broken=()):  # reward [N, G]
    reward = torch.as_tensor(reward)
    out = Rollouts.empty(tiny.starts(reward.numel()), 2, 4, video=False)
    out.reward[:, 1, 3] = reward.flatten()
    out.chunks[:] = 2
    out.broken[list(broken)] = True
    return out


def test_broken_siblings_are_left_out_of_the_mean_and_of_its_count():
    sound = torch.tensor([[True, True, True, False], [True, False, False, False]])
    advantage = leave_one_out(torch.tensor([[1.0, 0.0, 0.5, 9.0], [0.2, 9.0, 9.0, 9.0]]), sound)
    torch.testing.assert_close(advantage, torch.tensor([[0.75, -0.75, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


def test_leave_one_out_against_a_hand_computation():
    advantage = leave_one_out(torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]]), torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(advantage, torch.tensor([[0.75, -0.75, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("siblings", [2, 3, 8])
def test_advantages_are_unbiased_by_the_own_reward_and_sum_to_zero(siblings):
    reward = torch.rand(5, siblings, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = leave_one_out(reward, torch.ones_like(reward, dtype=torch.bool))
    assert advantage.sum(1).abs().max() < 1e-12
    for n in range(siblings):
        others = torch.cat([reward[:, :n], reward[:, n + 1 :]], dim=1).mean(1)
        torch.testing.assert_close(advantage[:, n], reward[:, n] - others)


def test_group_without_spread_gets_no_advantage_and_is_counted(tiny):
    rollouts = rewarded(tiny, [[0.9, 0.1, 0.5], [0.5, 0.5, 0.5], [0.7, 0.7001, 0.7]])
    advantage, flat = group_advantage(rollouts, 3, signal=0.01)
    assert flat == 2
    torch.testing.assert_close(advantage, torch.tensor([0.6, -0.6, 0.0, 0, 0, 0, 0, 0, 0]))


def test_broken_episode_gets_no_advantage_and_sways_nobody(tiny):
    rollouts = rewarded(tiny, [[0.9, float("nan"), 0.1, 0.5], [0.9, 0.8, 0.3, 0.2]], broken=[1, 4, 5, 6])
    advantage, flat = group_advantage(rollouts, 4, signal=0.01)
    assert flat == 1 and advantage[4:].tolist() == [0, 0, 0, 0]
    assert advantage[1] == 0 and advantage[0] == -advantage[2] > 0 and advantage[3].abs() < 1e-6
    again, _ = group_advantage(
        rewarded(tiny, [[0.9, 0.0, 0.1, 0.5], [0.9, 0.8, 0.3, 0.2]], broken=[1, 4, 5, 6]), 4, 0.01
    )
    assert torch.equal(advantage, again)


def test_broken_episodes_have_exactly_no_advantage_whatever_the_rounding(tiny):
    reward = torch.rand(40, 7, generator=torch.Generator().manual_seed(3))
    advantage, _ = group_advantage(rewarded(tiny, reward, broken=range(0, 280, 7)), 7, signal=1e-6)
    assert not advantage.view(40, 7)[:, 0].any() and advantage.view(40, 7)[:, 1:].all()


def test_learning_rate_rises_over_the_first_iterations_and_falls_to_a_tenth():
    config = PostTrainConfig(iterations=36, learning_rate=4e-4, warmup=4)
    expected = [1e-4, 2e-4 * 0.975, 4e-4 * 0.925, 4e-4 * 0.9, 4e-4 * 0.125]
    assert [config.rate(i) for i in (0, 1, 3, 4, 35)] == pytest.approx(expected)
    assert PostTrainConfig(learning_rate=4e-4, warmup=1).rate(0) == 4e-4


def test_update_makes_good_actions_likelier_and_bad_ones_rarer(tiny):
    engine = tiny.engine(horizon=2)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(3)
    learner = Learner(engine.policy, PostTrainConfig(epochs=4, learning_rate=1e-3, clip=0.5))
    figures = learner.update(rollouts, advantage, torch.Generator().manual_seed(0))
    assert figures["chunks"] == rollouts.chunks.sum()
    again = _log_prob(engine.policy, rollouts)
    change = ((again - rollouts.log_prob) * (torch.arange(2) < rollouts.chunks[:, None])).sum(1)
    assert (change * advantage).sum() > 0


def _log_prob(policy, rollouts):
    with torch.no_grad():
        mu, beta = policy(
            rollouts.frame.flatten(0, 1), rollouts.proprio.flatten(0, 1), rollouts.tokens.repeat_interleave(2, 0)
        )
    density = torch.distributions.Laplace(mu, beta.exp())
    return density.log_prob(rollouts.action.flatten(0, 1)).sum((1, 2)).view(-1, 2)


def test_update_leaves_the_encoder_and_moves_everything_else(tiny):
    engine, before = tiny.engine(horizon=2), tiny.policy().state_dict()
    advantage = torch.linspace(-1, 1, 12)
    learner = Learner(engine.policy, PostTrainConfig(epochs=2, learning_rate=1e-3))
    learner.update(engine.run(tiny.starts(3), 4, 5), advantage, torch.Generator().manual_seed(0))
    for name, weight in engine.policy.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("encoder."), name


def test_first_pass_has_ratio_one_and_a_loss_of_the_mean_advantage(tiny):
    engine = tiny.engine(horizon=2)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    advantage = torch.linspace(-1, 2, 12)
    learner = Learner(engine.policy, PostTrainConfig(epochs=1, minibatch=1000))
    figures = learner.update(rollouts, advantage, torch.Generator().manual_seed(0))
    weight = rollouts.chunks.float() / rollouts.chunks.sum()
    assert figures["loss"] == pytest.approx(-(advantage * weight).sum().item(), abs=1e-4)
    assert figures["clip_fraction"] == 0


def test_gradients_of_parts_add_up_to_those_of_the_minibatch(tiny):
    results = []
    for accumulate in (None, 5, 1):
        engine = tiny.engine(horizon=2)
        config = PostTrainConfig(epochs=1, minibatch=1000, learning_rate=1e-3, accumulate=accumulate)
        rollouts = engine.run(tiny.starts(3), 4, 5)
        figures = Learner(engine.policy, config).update(
            rollouts, torch.linspace(-1, 2, 12), torch.Generator().manual_seed(0)
        )
        results.append((figures["loss"], [p.grad for p in engine.policy.parameters() if p.grad is not None]))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        torch.testing.assert_close(grads, results[0][1], rtol=1e-3, atol=1e-6)


def test_update_without_any_signal_changes_nothing(tiny, same_weights):
    engine = tiny.engine(horizon=2)
    learner = Learner(engine.policy, CONFIG)
    figures = learner.update(engine.run(tiny.starts(3), 4, 5), torch.zeros(12), torch.Generator().manual_seed(0))
    assert figures == {"loss": 0, "clip_fraction": 0, "chunks": 0} and same_weights(engine.policy, tiny.policy())


def test_non_finite_update_touches_no_weight_is_counted_and_too_many_end_the_run(tiny, same_weights):
    engine = tiny.engine(horizon=2)
    rollouts = engine.run(tiny.starts(3), 4, 5)
    rollouts.log_prob[:] = float("nan")
    learner = Learner(engine.policy, PostTrainConfig(epochs=1, minibatch=1000, max_skipped=2))
    for count in (1, 2):
        learner.update(rollouts, torch.ones(12), torch.Generator().manual_seed(0))
        assert learner.skipped == count and same_weights(engine.policy, tiny.policy())
    with pytest.raises(
        UserError, match="3 policy updates had a non-finite loss or gradient; lower --post.learning-rate"
    ):
        learner.update(rollouts, torch.ones(12), torch.Generator().manual_seed(0))
    assert same_weights(engine.policy, tiny.policy())


def figures(folder):
    skip = ("time_s", "rollout_s", "update_s")
    return [{k: v for k, v in line.items() if k not in skip} for line in folder.metrics(STAGE)]


@pytest.mark.parametrize(
    "moment", ["before the line is written", "before the state is saved", "after the state is saved"]
)
def test_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path, same_weights, monkeypatch, moment):
    from worldenv.rl import loop as module

    folder, whole = RunFolder.create(tmp_path / "whole", {}), tiny.engine(horizon=2)
    counts = post_train(whole, tiny.starts(6), CONFIG, folder, seed=4)
    broken, part = RunFolder.create(tmp_path / "part", {}), tiny.engine(horizon=2)
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
    again, resumed = RunFolder.resume(tmp_path / "part", {}), tiny.engine(horizon=2)
    assert post_train(resumed, tiny.starts(6), CONFIG, again, seed=4) == counts
    assert same_weights(resumed.policy, whole.policy) and not same_weights(whole.policy, tiny.policy())
    assert figures(again) == figures(folder) and len(figures(folder)) == 3
    assert counts["groups"] == 9 and counts["broken_episodes"] == 0


def test_skipped_updates_are_counted_across_an_interruption(tiny, tmp_path, monkeypatch):
    from worldenv.rl import loop as module

    monkeypatch.setattr(module, "ppo_loss", lambda mu, *rest: (mu.mean() * math.nan, torch.zeros(())))
    whole = post_train(tiny.engine(horizon=2), tiny.starts(6), CONFIG, RunFolder.create(tmp_path / "whole", {}), seed=4)
    path = tmp_path / "part"
    first = PostTrainConfig(**{**vars(CONFIG), "iterations": 1})
    part = post_train(tiny.engine(horizon=2), tiny.starts(6), first, RunFolder.create(path, {}), seed=4)
    assert 0 < part["skipped_steps"] < whole["skipped_steps"]
    assert post_train(tiny.engine(horizon=2), tiny.starts(6), CONFIG, RunFolder.resume(path, {}), seed=4) == whole


def test_only_the_policy_learns(tiny, tmp_path, same_weights):
    engine = tiny.engine(horizon=2)
    post_train(engine, tiny.starts(6), CONFIG, RunFolder.create(tmp_path / "run", {}), seed=4)
    assert same_weights(engine.world.simulator, tiny.simulator()) and same_weights(engine.reflector, tiny.reflector())


def test_iterations_practise_from_other_starts_with_other_draws(tiny, tmp_path, monkeypatch):
    engine, asked = tiny.engine(horizon=1), []
    run = engine.run

    def spy(starts, siblings, seed, first_episode):
        asked.append((starts.proprio, seed, first_episode))
        return run(starts, siblings, seed, first_episode=first_episode)

    monkeypatch.setattr(engine, "run", spy)
    post_train(engine, tiny.starts(50), CONFIG, RunFolder.create(tmp_path / "run", {}), seed=4)
    assert [(seed, first) for _, seed, first in asked] == [(4, 0), (4, 12), (4, 24)]
    assert not torch.equal(asked[0][0], asked[1][0])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"siblings": 1}, "siblings is 1; leave-one-out needs at least 2"),
        ({"iterations": 0}, "must be positive"),
        ({"starts": 0}, "must be positive"),
        ({"epochs": 0}, "must be positive"),
        ({"minibatch": 0}, "must be positive"),
        ({"warmup": 0}, "warmup is 0; it should be at least 1"),
        ({"clip": 0.0}, r"clip must lie in \(0, 1\)"),
        ({"clip": 1.0}, r"clip must lie in \(0, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate be positive"),
        ({"learning_rate": math.inf}, "learning_rate be positive and finite"),
        ({"signal": math.nan}, r"signal must lie in \[0, 1\]"),
        ({"max_skipped": -1}, "max_skipped not be negative"),
    ],
)
def test_bad_configuration_is_refused(bad, message):
    with pytest.raises(UserError, match=message):
        PostTrainConfig(**bad)


def test_a_policy_that_cannot_be_updated_is_refused_before_any_rollout(tiny, tmp_path):
    engine = tiny.engine(policy=torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="practising takes a policy with `see`, `heads` and `features`"):
        post_train(engine, tiny.starts(3), CONFIG, RunFolder.create(tmp_path / "run", {}), 0)


def test_an_iteration_of_broken_episodes_alone_ends_the_run(tiny, tmp_path, monkeypatch):
    engine, folder = tiny.engine(horizon=2), RunFolder.create(tmp_path / "run", {})
    judge = engine.reflector.judge
    monkeypatch.setattr(engine.reflector, "judge", lambda *given: judge(*given) / 0)
    with pytest.raises(UserError, match="in iteration 1 no imagined episode was finite"):
        post_train(engine, tiny.starts(3), CONFIG, folder, 0)
