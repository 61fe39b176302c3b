"""Nobody writes over what another holds: callers, models, suites and engines."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import worldenv
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.evaluation.measure import practice_starts
from worldenv.evaluation.truth import act_in_true, judge_frames, judge_trajectories
from worldenv.interfaces.observation import Observation, Starts
from worldenv.interfaces.slots import Slots
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite

SEED = 5
ENTRIES = ("frames", "proprio", "actions", "success")


class Altered:
    """A part like another one, but for what is given."""

    def __init__(self, part, **members):
        self.__dict__.update(members, part=part)

    def __getattr__(self, name):
        return getattr(self.__dict__["part"], name)


# What the caller holds.


def test_starts_and_rows_that_the_caller_writes_over_later_do_not_change_an_environment(tiny):
    starts, rows = tiny.starts(4), torch.tensor([2, 0])
    env = WorldModelEnv(tiny.world(), tiny.reflector(), starts, EnvConfig(envs=4, horizon=8))
    env.seed(SEED)
    before, first = env.reset(starts=rows), env.info()["start"]
    starts.seen.frames.zero_()
    rows.fill_(3)
    env.seed(SEED)
    env.reset(starts=torch.tensor([2, 0]))
    assert all(torch.equal(a, b) for a, b in zip(env.observe().values(), before.values(), strict=True))
    assert torch.equal(env.reset()["frames"], before["frames"]) and torch.equal(env.info()["start"], first)


@pytest.mark.parametrize("name", ["policy", "world", "reflector"])
def test_models_of_an_engine_cannot_be_replaced_unseen(tiny, name):
    engine = tiny.engine()
    with pytest.raises(AttributeError):
        setattr(engine, name, getattr(tiny.parts(1), name))


def test_world_and_starts_of_an_environment_cannot_be_replaced_unseen(tiny):
    env = tiny.env(3)
    for name, value in (("world", tiny.world(1)), ("starts", tiny.starts(2))):
        with pytest.raises(AttributeError):
            setattr(env, name, value)


def test_an_engine_whose_first_trial_failed_runs_afterwards(tiny, monkeypatch):
    engine, expected = tiny.engine(horizon=8, batch=None), tiny.engine(horizon=8).run(tiny.starts(3), 2, SEED)

    def failing(*given):
        raise KeyError("in the models, while the memory of a pass is measured")

    monkeypatch.setattr("worldenv.rollout.runner.fitting", failing)
    with pytest.raises(KeyError):
        engine.run(tiny.starts(3), 2, SEED)
    monkeypatch.undo()
    assert torch.equal(engine.run(tiny.starts(3), 2, SEED).action, expected.action)


# What models hold.


@dataclass
class Seen(Slots):
    first: Tensor  # [E, 1]
    total: Tensor  # [E, 1]


class Summing:
    """A reflector whose state begins as `how` says, and is equal however it lies in memory."""

    def __init__(self, how):
        self.how, self.kept = how, torch.ones(100, 1)

    def read(self, texts):
        return torch.zeros(len(texts))

    def begin(self, seen, read):
        one = torch.ones(len(seen), 1)
        starting = {
            "copies": (one, one.clone()),
            "the same tensor twice": (one, one),
            "rows of a table of its own": (one, self.kept[: len(seen)]),
            "expanded": (one, torch.ones(1, 1).expand(len(seen), 1)),
        }
        return Seen(*starting[self.how])

    def judge(self, frames, state):
        rewards = []
        for frame in frames.unbind(1):
            state.total.add_(frame.float().mean((1, 2, 3, 4))[:, None] / 255)
            rewards.append(torch.sigmoid(state.total - 4 * state.first)[:, 0])
        reward = torch.stack(rewards, dim=1)
        return reward, reward > 0.9


@pytest.mark.parametrize("how", ["the same tensor twice", "rows of a table of its own", "expanded"])
def test_a_state_is_each_episodes_own_however_the_reflector_made_it(tiny, how):
    starts = tiny.starts(3)
    frames = torch.cat([starts.seen.frames[:, None]] * 13, dim=1)
    expected, reflector = judge_frames(Summing("copies"), starts, frames)[0], Summing(how)
    for _ in range(2):
        assert torch.equal(judge_frames(reflector, starts, frames)[0], expected)
    imagined = [tiny.engine(horizon=8, reflector=Summing(each)).run(starts, 2, SEED) for each in (how, "copies")]
    assert torch.equal(imagined[0].reward, imagined[1].reward)


def test_actions_of_a_replay_stay_as_they_are_though_the_world_model_writes_over_its_own(tiny):
    world, actions = tiny.world(), torch.full((3, 8, 7), 0.5)

    def imagine(memory, seen, action, key):
        out = world.imagine(memory, seen, action, key)
        action.zero_()
        return out

    shown = replay(Altered(world, imagine=imagine), tiny.starts(3), actions, SEED)
    assert (actions == 0.5).all() and torch.equal(shown, replay(world, tiny.starts(3), actions, SEED))


class Dropping(nn.Module):
    """A policy with dropout, as a new `nn.Module` is: in training mode."""

    chunk, views = 4, ("agentview",)

    def __init__(self, policy):
        super().__init__()
        self.policy, self.dropout = policy, nn.Dropout(0.5)
        self.read, self.log_prob, self.trainable = policy.read, policy.log_prob, policy.trainable

    def act(self, seen, read, key, explore):
        decision = self.policy.act(seen, read, key, explore)
        return worldenv.Decision(self.dropout(decision.action), decision.log_prob, decision.record)


@pytest.mark.parametrize("where", ["engine", "true"])
def test_a_policy_acts_without_dropout_though_it_was_left_in_training_mode(tiny, where):
    def actions(policy):
        if where == "engine":
            return tiny.engine(horizon=8, policy=policy).run(tiny.starts(2), 2, SEED).action
        suite = TabletopSuite(16)
        suite.horizon = 4
        return torch.from_numpy(np.stack([t.actions for t in act_in_true(policy, suite, TASKS[:2], [0, 1], "test")]))

    left = Dropping(tiny.policy())
    assert left.training and left.dropout.training
    assert torch.equal(actions(left), actions(tiny.policy())) and not left.dropout.training


# What suites hold.


class InItsOwnArrays:
    """A suite that shows every step in the same arrays, and scales the action in place."""

    def __init__(self, suite):
        self.suite = suite

    def __getattr__(self, name):
        return getattr(self.suite, name)

    def reset(self, *given):
        begun = self.suite.reset(*given)
        if not hasattr(self, "shown") or len(self.shown) != len(begun):
            self.shown, self.done = begun.seen, np.zeros(len(begun), bool)
        return self._show(begun.seen, begun.texts)

    def _show(self, seen, texts):
        for mine, new in ((self.shown.frames, seen.frames), (self.shown.proprio, seen.proprio)):
            mine.copy_(new)
        return Starts(self.shown, texts)

    def step(self, action):
        seen, done = self.suite.step(action)
        action *= 0.01
        self.done[:] = done
        return self._show(seen, ()).seen, self.done


def test_episodes_of_a_suite_that_shows_its_own_arrays_are_recorded_step_by_step(tiny):
    suite = TabletopSuite(16)
    suite.horizon = 6
    given = TASKS[:3], [0, 1, 2], "test", 1.0, SEED
    plain = act_in_true(tiny.policy(), suite, *given)
    own = act_in_true(tiny.policy(), InItsOwnArrays(suite), *given)
    for mine, other in zip(own, plain, strict=True):
        assert all(np.array_equal(getattr(mine, name), getattr(other, name)) for name in ENTRIES)


def test_practice_starts_stay_though_the_suite_begins_others(tiny):
    suite = InItsOwnArrays(TabletopSuite(16))
    starts = practice_starts(suite, 0)
    before = starts.seen.each(torch.clone)
    practice_starts(suite, 1)
    assert all(torch.equal(a, b) for a, b in zip(starts.seen.tensors(), before.tensors(), strict=True))


# Modes of the caller.


def test_autocast_of_the_caller_changes_no_true_episode_no_judgement_and_no_replay(tiny):
    suite, starts = TabletopSuite(16), tiny.starts(3)
    suite.horizon = 4

    def all_of_it():
        episodes = act_in_true(tiny.policy(), suite, TASKS[:3], [0, 1, 2], "test")
        shown = replay(tiny.world(), starts, torch.full((3, 4, 7), 0.5), SEED)
        return [e.actions for e in episodes], judge_trajectories(tiny.reflector(), episodes)[0], shown

    plain = all_of_it()
    with torch.autocast("cpu", torch.bfloat16):
        cast = all_of_it()
    assert np.array_equal(plain[0], cast[0]) and np.array_equal(plain[1], cast[1]) and torch.equal(plain[2], cast[2])


# What comes late.


def test_a_reward_outside_its_bounds_that_comes_late_is_refused_in_an_environment_too(tiny):
    reflector, calls = tiny.reflector(), []

    def judge(frames, state):
        reward, stop = reflector.judge(frames, state)
        calls.append(1)
        return (reward if len(calls) < 3 else reward + 1), torch.zeros_like(stop)

    env = WorldModelEnv(tiny.world(), Altered(reflector, judge=judge), tiny.starts(3), EnvConfig(envs=3, horizon=40))
    env.seed(SEED)
    env.reset()
    action = torch.zeros(3, 4, 7)
    env.step(action)
    env.step(action)
    with pytest.raises(UserError, match="the reflector returned rewards from .*; every"):
        env.step(action)


def test_actions_that_are_not_finite_are_the_policys_fault_whatever_the_suite(tiny):
    policy = tiny.policy()

    def act(*given):
        decision = policy.act(*given)
        return worldenv.Decision(decision.action * np.nan, decision.log_prob, decision.record)

    with warnings.catch_warnings(), pytest.raises(UserError, match="the policy's actions in true episodes are not all"):
        act_in_true(Altered(policy, act=act), TabletopSuite(16), TASKS[:2], [0, 1], "test")


def test_a_policy_that_writes_over_what_it_sees_is_refused_in_true_episodes(tiny):
    policy = tiny.policy()

    def act(seen: Observation, *given):
        decision = policy.act(seen, *given)
        seen.proprio.add_(1)
        return decision

    with pytest.raises(UserError, match="the policy's `act` changed its input in place"):
        act_in_true(Altered(policy, act=act), TabletopSuite(16), TASKS[:2], [0, 1], "test")


def test_what_is_made_without_parts_checks_its_models_too(tiny):
    policy, world, reflector, starts = tiny.policy(), tiny.world(), tiny.reflector(), tiny.starts(2)
    engine, env = worldenv.EngineConfig(horizon=4), EnvConfig(horizon=4)
    for make, message in (
        (lambda: worldenv.Engine(None, world, reflector, engine), "the policy NoneType lacks"),
        (lambda: worldenv.Engine(type(policy), world, reflector, engine), "the policy type lacks chunk"),
        (lambda: worldenv.Engine(world, policy, reflector, engine), "the policy ComposerWorld lacks"),
        (lambda: worldenv.Engine(policy, world, None, engine), "the reflector NoneType lacks"),
        (lambda: worldenv.Engine(policy, world, reflector, env), "config is a EnvConfig; it should be of type Engine"),
        (lambda: WorldModelEnv(world, None, starts, env), "the reflector NoneType lacks"),
        (lambda: WorldModelEnv(world, reflector, starts, None), "config is a NoneType; it should be of type EnvConf"),
    ):
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("name", ["WorldModelVectorEnv", "TorchRLWorldModelEnv"])
def test_adapters_of_something_else_are_refused(tiny, name):
    pytest.importorskip("gymnasium" if name == "WorldModelVectorEnv" else "torchrl")
    for wrong in (None, tiny.engine()):
        with pytest.raises(UserError, match="env is a .*; it should be a WorldModelEnv, as worldenv.make_env returns"):
            getattr(worldenv, name)(wrong)
