"""Learning refuses what does not fit, in one line, before any weight has changed."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder
from worldenv.rl.advantage import group_advantage, leave_one_out
from worldenv.rl.checks import check_practice
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rl.loop import post_train

CONFIG = PostTrainConfig(minibatch=8, accumulate=5)
SIBLINGS = 4


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rollouts(tiny):
    return tiny.engine(horizon=8).run(tiny.starts(3), SIBLINGS, 5)


@pytest.fixture
def advantage(rollouts):
    return group_advantage(rollouts, SIBLINGS, 0.0)[0]


def altered(policy, **members):
    for name, member in members.items():
        setattr(policy, name, member)
    return policy


OFFERED = {
    "None": lambda head: None,
    "one parameter": lambda head: head[0].weight,
    "names": lambda head: list(head.named_parameters()),
    "a dict": lambda head: dict(head.named_parameters()),
    "a set, whose order changes from run to run": lambda head: set(head.parameters()),
    "groups": lambda head: [{"params": list(head.parameters())}],
    "results": lambda head: [parameter * 1 for parameter in head.parameters()],
    "frozen": lambda head: [parameter.requires_grad_(False) for parameter in head.parameters()],
    "copies": lambda head: [nn.Parameter(parameter.detach()) for parameter in head.parameters()],
}


@pytest.mark.parametrize("offered", OFFERED)
def test_what_cannot_be_trained_is_refused(tiny, offered):
    policy = tiny.policy()
    policy.trainable = lambda: OFFERED[offered](policy.action_head)
    with pytest.raises(UserError, match="trainable"):
        Learner(policy, CONFIG)


def test_modules_in_a_plain_list_would_not_be_saved_and_are_refused(tiny):
    policy = tiny.policy()
    policy.heads_of_its_own = [nn.Linear(2, 2)]
    policy.trainable = lambda: list(policy.heads_of_its_own[0].parameters())
    with pytest.raises(UserError, match=r"not among policy.parameters\(\), so what they learn would not be saved"):
        Learner(policy, CONFIG)


def test_parameters_offered_by_a_generator_and_twice_are_trained_once(tiny, rollouts, advantage, same_weights):
    usual, policy = tiny.policy(), tiny.policy()
    policy.trainable = lambda: (one for one in [*usual.__class__.trainable(policy)] * 2)
    for one in (usual, policy):
        Learner(one, CONFIG).update(rollouts, advantage, generator())
    assert same_weights(usual, policy) and not same_weights(usual, tiny.policy())


LOG_PROBS = {
    "a column": lambda now: now[:, None],
    "one for all": lambda now: now.sum()[None],
    "the sum": lambda now: now.sum(),
    "nothing": lambda now: None,
    "without a gradient": lambda now: now.detach(),
}


@pytest.mark.parametrize("how", LOG_PROBS)
def test_log_probabilities_that_are_not_one_number_for_each_chunk_are_refused(tiny, rollouts, advantage, how):
    policy = tiny.policy()
    given = policy.log_prob
    altered(policy, log_prob=lambda *moment: LOG_PROBS[how](given(*moment)), ppo_loss=None)
    with pytest.raises(UserError, match="log_prob"):
        Learner(policy, CONFIG).update(rollouts, advantage, generator())


@pytest.mark.parametrize("loss", [None, torch.ones(()), (torch.ones(3), torch.ones(())), (torch.ones(()), 0.5)])
def test_an_objective_of_another_kind_is_refused(tiny, rollouts, advantage, loss):
    learner = Learner(altered(tiny.policy(), ppo_loss=lambda *given: loss), CONFIG)
    with pytest.raises(UserError, match="`ppo_loss` should return two tensors"):
        learner.update(rollouts, advantage, generator())


def test_log_probabilities_of_another_formula_than_those_of_acting_give_a_warning(tiny, rollouts, advantage):
    policy = tiny.policy()
    given = policy.log_prob
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Learner(tiny.policy(), CONFIG).update(rollouts, advantage, generator())
    altered(policy, log_prob=lambda *moment: given(*moment) / 28, ppo_loss=None)  # the mean instead of the sum
    with pytest.warns(UserWarning, match="the policy's `log_prob` gives other numbers than its `act` did"):
        Learner(policy, CONFIG).update(rollouts, advantage, generator())


ADVANTAGES = {
    "fewer": lambda a: a[:3],
    "in groups": lambda a: a.view(-1, SIBLINGS),
    "not finite": lambda a: a * np.nan,
    "double": lambda a: a.double(),
    "integers": lambda a: a.long(),
    "an array": lambda a: a.numpy(),
    "nothing": lambda a: None,
}


@pytest.mark.parametrize("how", ADVANTAGES)
def test_advantages_of_another_kind_are_refused(tiny, rollouts, advantage, how):
    with pytest.raises(UserError, match="advantage"):
        Learner(tiny.policy(), CONFIG).update(rollouts, ADVANTAGES[how](advantage), generator())


def test_other_arguments_of_another_kind_are_refused(tiny, rollouts, advantage):
    learner = Learner(tiny.policy(), CONFIG)
    for given, message in (
        ((None, advantage, generator()), "rollouts is a NoneType"),
        ((replace(rollouts, record=None), advantage, generator()), "record is None"),
        ((rollouts, advantage, 0), "generator is a int"),
    ):
        with pytest.raises(UserError, match=message):
            learner.update(*given)
    with pytest.raises(UserError, match="config is a NoneType; it should be of type PostTrainConfig"):
        Learner(tiny.policy(), None)
    with pytest.raises(UserError, match="the policy NoneType lacks"):
        Learner(None, CONFIG)


@pytest.mark.parametrize("siblings", [0, 5, -4, None, 4.0, True, "4"])
def test_siblings_that_do_not_divide_the_rollouts_are_refused(rollouts, siblings):
    with pytest.raises(UserError, match="siblings is .*; it should be the number that the 12 rollouts were made with"):
        group_advantage(rollouts, siblings, 0.0)


@pytest.mark.parametrize("signal", [float("nan"), -0.1, 1.5, None, "0"])
def test_signal_that_is_no_share_is_refused(rollouts, signal):
    with pytest.raises(UserError, match="signal is"):
        group_advantage(rollouts, SIBLINGS, signal)


@pytest.mark.parametrize("guard", [float("nan"), float("inf"), -0.1, None, True])
def test_guard_that_is_no_exponent_is_refused(rollouts, guard):
    with pytest.raises(UserError, match="guard is"):
        group_advantage(rollouts, SIBLINGS, 0.0, guard)


def test_rewards_that_are_not_in_groups_are_refused():
    sound = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
    for wrong in ((sound[0][0], sound[1][0]), (sound[0], sound[0]), (sound[0], sound[1][:1]), ([[1.0]], sound[1])):
        with pytest.raises(UserError, match="reward and finite should be tensors"):
            leave_one_out(*wrong)


class Own(nn.Module):
    """A policy of the user's own around the tiny one, with something else to keep."""

    chunk, views = 4, ("agentview",)

    def __init__(self, policy, kind=None):
        super().__init__()
        self.policy, self.kind, self.calls = policy, kind, 0
        self.read, self.log_prob, self.trainable = policy.read, policy.log_prob, policy.trainable
        kept = {
            "an integer": torch.zeros((), dtype=torch.int64),
            "a mask": torch.full((3,), -torch.inf),
            "sparse": torch.eye(3).to_sparse(),
            "on meta": torch.zeros(3, device="meta"),
        }
        if kind in kept:
            self.register_buffer("kept", kept[kind])
        if kind == "lazy":
            self.kept = nn.LazyLinear(3)
        if kind == "not finite":
            self.kept = nn.Parameter(torch.full((3,), torch.nan))

    def state_dict(self, *given, **more):
        return super().state_dict(*given, **more) | ({"kept": {"a": 1}} if self.kind == "a dict" else {})

    def act(self, *given):
        self.calls += 1
        if self.kind == "made while it acts" and self.calls == 3:
            self.late = nn.Linear(2, 2)
        return self.policy.act(*given)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a dict", "the entry 'kept', a dict; only tensors are saved"),
        ("lazy", "kept.weight has no shape yet"),
        ("sparse", "kept is torch.sparse_coo"),
        ("on meta", "kept is torch.strided torch.float32 on meta"),
        ("not finite", "kept holds numbers that are not finite"),
        ("made while it acts", "late.bias of the policy's state_dict was added or removed while"),
    ],
)
def test_weights_that_could_not_be_saved_or_loaded_again_are_refused_before_practice(tiny, tmp_path, kind, message):
    engine = tiny.engine(horizon=8, policy=Own(tiny.policy(), kind))
    config = PostTrainConfig(iterations=2, starts=2, siblings=2, signal=0.0)
    folder = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(UserError, match=message):
        post_train(engine, tiny.starts(3), config, folder, 0)
    assert not list(folder.checkpoints.iterdir())


@pytest.mark.parametrize("kind", ["an integer", "a mask"])
def test_buffers_of_any_dense_kind_are_saved_and_resumed(tiny, tmp_path, kind, same_weights):
    def practised(name, stop=None):
        engine = tiny.engine(horizon=8, policy=Own(tiny.policy(), kind))
        config = PostTrainConfig(iterations=2, starts=2, siblings=2, signal=0.0)
        run, calls = engine.run, []

        def stopping(*given):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return run(*given)

        engine.run, path = stopping, tmp_path / name
        with RunFolder.resume(path) if path.exists() else RunFolder.create(path, {}) as folder:
            post_train(engine, tiny.starts(3), config, folder, 0)
        return engine.policy

    whole = practised("whole")
    with pytest.raises(KeyboardInterrupt):
        practised("cut", stop=2)
    assert same_weights(practised("cut"), whole) and not same_weights(whole.policy, tiny.policy())


def test_settings_that_policy_or_world_model_cannot_serve_are_refused():
    with pytest.raises(UserError, match="needs a policy with the method `value_input`"):
        check_practice(object(), object(), replace(CONFIG, critic=True))
    with pytest.raises(UserError, match="needs a world model that tells what is held"):
        check_practice(object(), object(), replace(CONFIG, needs_hold=True))
    check_practice(object(), object(), CONFIG)
