"""Adapters and heads of a released policy may learn at rates of their own."""

import pytest
import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.policy.adapted import Adapted
from worldenv.policy.small import SmallPolicy
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner


class Released(Adapted):
    """As far as learning looks at it: a frozen layer, an adapter under peft's name, and a head."""

    chunk, views = 4, ("agentview",)

    def __init__(self, heads: int = 2):
        super().__init__("nowhere", 0)
        self.layer = nn.Linear(3, 3).requires_grad_(False)
        self.layer.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.head = nn.Linear(3, heads) if heads else None
        self.finish()

    def read(self, texts): ...

    def act(self, seen, read, key, explore): ...

    def log_prob(self, record, action): ...


def test_heads_have_their_own_rate_through_warmup_and_decay():
    policy = Released()
    config = PostTrainConfig(iterations=10, learning_rate=1e-4, head_learning_rate=1e-5, warmup=2)
    learner = Learner(policy, config)
    adapter, head = learner.optimizer.param_groups
    assert [p.shape for p in adapter["params"]] == [(2, 3)] and [p.shape for p in head["params"]] == [(2, 3), (2,)]
    assert (adapter["lr"], head["lr"]) == (1e-4, 1e-5)
    for iteration in (0, 1, 9):
        learner.set_rates(iteration)
        assert adapter["lr"] == config.rate(iteration) and head["lr"] == pytest.approx(adapter["lr"] / 10)


def test_a_step_moves_each_group_as_far_as_its_rate_says():
    policy = Released()
    learner = Learner(policy, PostTrainConfig(learning_rate=1e-2, head_learning_rate=1e-4))
    before = [p.detach().clone() for p in learner.parameters]
    sum(p.sum() for p in learner.parameters).backward()
    learner.optimizer.step()
    moved = [(p - old).abs().max().item() for p, old in zip(learner.parameters, before, strict=True)]
    assert sorted(moved) == pytest.approx([1e-4, 1e-4, 1e-2], rel=1e-3)  # the first step of Adam is the rate itself


@pytest.mark.parametrize(("heads", "own", "groups"), [(2, None, 1), (0, 1e-5, 1), (2, 1e-5, 2)])
def test_there_are_no_empty_groups(heads, own, groups):
    config = PostTrainConfig(head_learning_rate=own)
    assert len(Learner(Released(heads), config).optimizer.param_groups) == groups


def test_with_a_rate_of_0_the_action_head_alone_learns(tiny):
    policy, before = tiny.policy(), tiny.policy().state_dict()
    learner = Learner(policy, PostTrainConfig(learning_rate=0.0, head_learning_rate=1e-3))
    learner.set_rates(3)
    sum(p.sum() for p in learner.parameters).backward()
    learner.optimizer.step()
    moved = {name.split(".")[0] for name, now in policy.state_dict().items() if not torch.equal(now, before[name])}
    assert moved == {"action_head"}


def test_a_policy_that_does_not_say_what_its_heads_are_is_refused(tiny, monkeypatch):
    monkeypatch.delattr(SmallPolicy, "head_parameters")
    with pytest.raises(
        UserError, match="--rl.head-learning-rate is for a policy that has the method `head_parameters`"
    ):
        Learner(tiny.policy(), PostTrainConfig(head_learning_rate=1e-5))


def test_the_rates_are_those_of_one_group_where_none_is_given(tiny):
    learner = Learner(tiny.policy(), PostTrainConfig())
    (group,) = learner.optimizer.param_groups
    learner.set_rates(7)
    assert group["lr"] == PostTrainConfig().rate(7) and torch.equal(group["params"][0], learner.parameters[0])


def test_without_a_rate_for_heads_every_step_is_bit_for_bit_that_of_one_plain_adam(tiny):
    config, states = PostTrainConfig(warmup=2), []
    for plain in (True, False):
        policy = tiny.policy()
        learner = Learner(policy, config)
        if plain:
            learner.optimizer = torch.optim.Adam(learner.parameters, config.learning_rate)
        for step in range(3):
            learner.set_rates(step)
            if plain:
                assert learner.optimizer.param_groups[0]["lr"] == config.rate(step)
            learner.optimizer.zero_grad()
            sum((p * p).sum() for p in learner.parameters).backward()
            learner.optimizer.step()
        states.append(policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
