"""One step off policy: who acts, that timing and interruptions leave no trace, and that without it nothing changes."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from worldenv.assemble import load, make_engine
from worldenv.errors import UserError
from worldenv.evaluation.measure import practice_starts
from worldenv.fields import FieldError
from worldenv.records.checkpoint import CheckpointError, load_state, save_state
from worldenv.records.run_folder import RunFolder
from worldenv.rl import loop, practice_state
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rl.loop import STAGE, post_train
from worldenv.rollout.engine import Engine, EngineConfig

CONFIG = PostTrainConfig(
    iterations=3, starts=3, siblings=4, learning_rate=1e-3, minibatch=16, signal=1e-6, off_policy=True
)
EPISODES = CONFIG.starts * CONFIG.siblings
PATIENCE_S = 20.0


def figures(folder):
    skip = ("time_s", "rollout_s", "update_s", "ahead_s")
    return [{k: v for k, v in line.items() if k not in skip} for line in folder.metrics(STAGE)]


@pytest.fixture
def updates(monkeypatch):
    """The rollouts of every update, and the policy's weights before it."""
    seen, update = [], Learner.update

    def spy(learner, rollouts, *rest):
        weights = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
        seen.append((rollouts, weights))
        return update(learner, rollouts, *rest)

    monkeypatch.setattr(Learner, "update", spy)
    return seen


def practised(engine, starts, path, config=CONFIG):
    """The folder; made or resumed."""
    with RunFolder.resume(path) if path.exists() else RunFolder.create(path, {}) as folder:
        post_train(engine, starts, config, folder, seed=4)
    return folder


def error(policy, rollouts, weights):
    """Greatest difference between log-probabilities as they were and as these weights give them."""
    policy.load_state_dict(weights)
    acted = torch.arange(rollouts.log_prob.shape[1]) < rollouts.chunks[:, None]
    record = rollouts.record.each(lambda tensor: tensor[acted])
    return (policy.log_prob(record, rollouts.action[acted]) - rollouts.log_prob[acted]).abs().max().item()


def test_the_policy_that_acts_is_one_update_behind_the_one_that_learns(tiny, tmp_path, updates, same_weights):
    practised(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "run")
    weights = [before for _, before in updates]
    assert not any(same_weights(one, other) for one, other in zip(weights, weights[1:], strict=False))
    for i, (rollouts, _) in enumerate(updates):
        assert error(tiny.policy(), rollouts, weights[max(0, i - 1)]) < 1e-4
        assert i == 0 or error(tiny.policy(), rollouts, weights[i]) > 1e-2


def test_buffers_that_change_while_the_policy_learns_are_taken_over(tiny, tmp_path, monkeypatch):
    engine, acted, original = tiny.engine(horizon=8), [], Engine.run
    engine.policy.register_buffer("seen", torch.zeros(()))
    loss = type(engine.policy).ppo_loss

    def count(policy, *given):
        policy.seen = policy.seen + 1  # another tensor
        return loss(policy, *given)

    def run(engine, *given):
        acted.append(engine.policy.seen.item())
        return original(engine, *given)

    monkeypatch.setattr(type(engine.policy), "ppo_loss", count)
    monkeypatch.setattr(Engine, "run", run)
    practised(engine, tiny.starts(6), tmp_path / "run", replace(CONFIG, iterations=2))
    monkeypatch.setattr(type(engine.policy), "ppo_loss", loss)
    assert acted[0] == acted[1] == 0 and engine.policy.seen > 0
    assert load_state(practice_state.path_of(RunFolder(tmp_path / "run")))["acts"]
    resumed = tiny.engine(horizon=8)
    resumed.policy.register_buffer("seen", torch.zeros(()))
    practised(resumed, tiny.starts(6), tmp_path / "run")
    assert 0 < acted[2] < engine.policy.seen


def test_it_begins_like_practice_on_policy_and_then_differs(tiny, tmp_path, updates):
    practised(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "off")
    practised(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "on", replace(CONFIG, off_policy=False))
    (off, on) = ([rollouts.action for rollouts, _ in updates[i : i + 3]] for i in (0, 3))
    assert torch.equal(off[0], on[0]) and not any(map(torch.equal, off[1:], on[1:]))


def test_shipped_models_in_8_bits_imagine_as_they_would_alone(tmp_path, updates):
    parts, config = load(), replace(CONFIG, starts=2, siblings=2, signal=0.0)
    parts.suite.practice_starts = 4
    starts = practice_starts(parts.suite, 0)
    practised(make_engine(parts, EngineConfig(horizon=8)), starts, tmp_path / "run", config)
    other = load()
    other.policy.load_state_dict(updates[1][1])
    engine, generator = make_engine(other, EngineConfig(horizon=8)), torch.Generator().manual_seed(4 * 1_000_003 + 2)
    alone = engine.run(starts.pick(torch.randint(4, (2,), generator=generator)), 2, 4, 8)
    assert torch.equal(alone.action, updates[2][0].action) and torch.equal(alone.reward, updates[2][0].reward)


def in_order(monkeypatch, order):
    """Let updates and the rollouts of the next iteration run side by side, or one of them wait for the other."""
    began, imagined, learnt = ([threading.Event() for _ in range(4)] for _ in range(3))
    imagined[3].set(), began[3].set()  # after the last iteration nothing is imagined
    run, update, count = Engine.run, Learner.update, [0]

    def rollouts(engine, starts, siblings, seed, first_episode):
        i = first_episode // EPISODES
        began[i].set()
        assert order != "learn first" or i == 0 or learnt[i - 1].wait(PATIENCE_S)
        out = run(engine, starts, siblings, seed, first_episode)
        imagined[i].set()
        return out

    def learn(*given):
        i, count[0] = count[0], count[0] + 1
        assert (imagined if order == "imagine first" else began)[i + 1].wait(PATIENCE_S)  # it does not wait for this
        out = update(*given)
        learnt[i].set()
        return out

    monkeypatch.setattr(Engine, "run", rollouts)
    monkeypatch.setattr(Learner, "update", learn)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_result_does_not_depend_on_what_happens_when(tiny, tmp_path, same_weights, monkeypatch, two_threads):
    results = []
    for order in ("at a time", "imagine first", "learn first"):
        engine = tiny.engine(horizon=8)
        with monkeypatch.context() as patch:
            in_order(patch, order)
            folder = practised(engine, tiny.starts(6), tmp_path / order)
        results.append((engine.policy, figures(folder)))
        assert all(line["ahead_s"] > 0 for line in folder.metrics(STAGE))
    for policy, lines in results[1:]:
        assert same_weights(policy, results[0][0]) and lines == results[0][1]


@pytest.mark.parametrize("moment", ["before the line is written", "before the state is saved", "after it is saved"])
@pytest.mark.parametrize("iteration", [1, 2])
def test_interrupted_run_ends_like_an_uninterrupted_one(tiny, tmp_path, same_weights, monkeypatch, moment, iteration):
    whole, part, calls = tiny.engine(horizon=8), tiny.engine(horizon=8), []
    folder = practised(whole, tiny.starts(6), tmp_path / "whole")
    owner, name = (RunFolder, "log") if moment == "before the line is written" else (practice_state, "save_state")
    original = getattr(owner, name)

    def die(*arguments, **parts):
        calls.append(1)
        if len(calls) == iteration and not moment.startswith("after"):
            raise KeyboardInterrupt
        original(*arguments, **parts)
        if len(calls) == iteration:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, die)
        practised(part, tiny.starts(6), tmp_path / "part")
    resumed = tiny.engine(horizon=8)
    again = practised(resumed, tiny.starts(6), tmp_path / "part")
    assert same_weights(resumed.policy, whole.policy) and figures(again) == figures(folder)
    assert len(figures(again)) == 3 and not same_weights(whole.policy, tiny.policy())


def test_looks_at_practice_beside_what_is_imagined_change_nothing(tiny, tmp_path, same_weights):
    plain, looked_at, seen = tiny.engine(horizon=8), tiny.engine(horizon=8), []

    def validate():
        seen.append(looked_at.run(tiny.starts(5), 1, 9, explore=False).action)
        return {}

    practised(plain, tiny.starts(6), tmp_path / "plain")
    with RunFolder.create(tmp_path / "run", {}) as folder:
        post_train(looked_at, tiny.starts(6), CONFIG, folder, 4, validate, every=1)
    assert same_weights(plain.policy, looked_at.policy)
    last = tiny.engine(horizon=8, policy=plain.policy).run(tiny.starts(5), 1, 9, explore=False)
    assert torch.equal(seen[-1], last.action) and not torch.equal(seen[0], seen[1])  # of the policy that learns


def test_a_policy_in_training_mode_learns_in_evaluation_mode(tiny, tmp_path, monkeypatch):
    """As on policy, where the engine puts the policy that learns into that mode: dropout would be in its ratios."""
    engine, update, modes = tiny.engine(horizon=8), Learner.update, []
    engine.policy.train()
    monkeypatch.setattr(Learner, "update", lambda me, *given: modes.append(me.policy.training) or update(me, *given))
    practised(engine, tiny.starts(6), tmp_path / "run", replace(CONFIG, iterations=1))
    assert modes == [False]


def test_frozen_weights_are_there_once(tiny, tmp_path, monkeypatch):
    engine, copies, original = tiny.engine(horizon=8), [], Engine.with_policy
    monkeypatch.setattr(Engine, "with_policy", lambda me, policy: copies.append(policy) or original(me, policy))
    practised(engine, tiny.starts(6), tmp_path / "run", replace(CONFIG, iterations=1))
    (acts,) = copies
    learnt = {*map(id, engine.policy.trainable())}
    for mine, other in zip(engine.policy.parameters(), acts.parameters(), strict=True):
        assert (mine is other) == (id(mine) not in learnt)
    assert 0 < len(learnt) < len(list(acts.parameters()))


def test_without_the_option_no_copy_is_made_or_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Ahead", None)
    assert PostTrainConfig().off_policy is False
    folder = practised(tiny.engine(horizon=8), tiny.starts(6), tmp_path / "run", replace(CONFIG, off_policy=False))
    assert "acts" not in load_state(practice_state.path_of(folder))
    assert all("ahead_s" not in line for line in folder.metrics(STAGE))


def test_an_error_of_the_update_ends_what_is_imagined_meanwhile(tiny, tmp_path, monkeypatch):
    engine, begun = tiny.engine(horizon=4000), threading.Event()
    imagine = engine.world.imagine

    def slow(memory, seen, action, key):
        if key.episode.min() >= EPISODES:
            begun.set()
            time.sleep(0.05)
        return imagine(memory, seen, action, key)

    def fail(*_):
        assert begun.wait(PATIENCE_S)
        raise UserError("the update failed")

    monkeypatch.setattr(engine.world, "imagine", slow)
    monkeypatch.setattr(engine.reflector, "judge", stops_at_once(engine.reflector.judge))
    monkeypatch.setattr(Learner, "update", fail)
    began = time.monotonic()
    with pytest.raises(UserError, match="the update failed"):
        practised(engine, tiny.starts(6), tmp_path / "run")
    assert time.monotonic() - began < PATIENCE_S  # to the horizon it would take 50 s
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imagine")]


def stops_at_once(judge):
    """In the first iteration only: later episodes would go on for a thousand chunks."""
    calls = []

    def judged(*given):
        reward, stop = judge(*given)
        calls.append(1)
        return reward, torch.full_like(stop, len(calls) == 1)

    return judged


def test_an_error_of_the_rollouts_ends_the_run(tiny, tmp_path, monkeypatch):
    engine, judge = tiny.engine(horizon=8), Engine.run

    def run(engine, starts, siblings, seed, first_episode):
        if first_episode:
            raise UserError("the rollouts failed")
        return judge(engine, starts, siblings, seed, first_episode)

    monkeypatch.setattr(Engine, "run", run)
    with pytest.raises(UserError, match="the rollouts failed"):
        practised(engine, tiny.starts(6), tmp_path / "run")
    assert len(figures(RunFolder(tmp_path / "run"))) == 1


def test_state_without_the_weights_that_act_next_is_refused(tiny, tmp_path, same_weights):
    path = tmp_path / "run"
    state = practice_state.path_of(
        practised(tiny.engine(horizon=8), tiny.starts(6), path, replace(CONFIG, iterations=1))
    )
    whole = load_state(state)
    for acts, message in (
        (None, "not a state of this stage and version"),
        ({}, "the weights that act next are damaged"),
        (whole["acts"] | {0: torch.zeros(1)}, "the weights that act next are damaged"),
    ):
        save_state(state, **whole | {"acts": acts})
        engine = tiny.engine(horizon=8)
        with pytest.raises(CheckpointError, match=message):
            practised(engine, tiny.starts(6), path)
        assert same_weights(engine.policy, tiny.policy())


def test_state_of_a_version_that_kept_no_buffers_goes_on(tiny, tmp_path):
    def engine():
        made = tiny.engine(horizon=8)
        made.policy.register_buffer("seen", torch.zeros(()))
        return made

    state = practice_state.path_of(practised(engine(), tiny.starts(6), tmp_path / "run", replace(CONFIG, iterations=1)))
    whole = load_state(state)
    learnt = {i: weight for i, weight in whole["acts"].items() if i < len(whole["acts"]) - 1}
    save_state(state, **whole | {"acts": learnt})
    assert len(figures(practised(engine(), tiny.starts(6), tmp_path / "run"))) == CONFIG.iterations


def test_what_it_excludes_is_refused(tiny, tmp_path):
    with pytest.raises(FieldError, match="off_policy and offload are both on"):
        replace(CONFIG, offload="on")
    engine = tiny.engine(horizon=8)
    with RunFolder.create(tmp_path / "run", {}) as folder, pytest.raises(UserError, match="gives another engine"):
        post_train(engine, tiny.starts(6), CONFIG, folder, 4, renew=lambda iteration: engine)
    engine.policy.lock = threading.Lock()
    with pytest.raises(UserError, match="the policy cannot be copied, so no copy of it can act .* --rl.off-policy"):
        practised(engine, tiny.starts(6), tmp_path / "other")
