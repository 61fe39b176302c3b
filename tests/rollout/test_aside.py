"""Parts that are idle while the policy learns wait in host memory, and nothing comes out otherwise."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rl.learner import Learner
from worldenv.rl.loop import STAGE, post_train
from worldenv.rollout.aside import HOST, in_host_memory

CARD = torch.device("cpu", 0)  # another name of the only device that is there
CONFIG = PostTrainConfig(iterations=2, starts=3, siblings=4, learning_rate=1e-3, minibatch=16, signal=1e-6)


class Movable(nn.Linear):
    """Notes where it is sent."""

    def __init__(self):
        super().__init__(2, 2)
        self.sent = []

    def to(self, device):
        self.sent.append(device)
        return super().to(device)


class Part:
    """As a world model is one."""

    def __init__(self, network):
        self.network = network


def test_networks_go_to_host_memory_and_back():
    world, judge, policy = Movable(), Movable(), Movable()
    with in_host_memory((Part(world), judge, object()), policy, CARD):
        assert world.sent == judge.sent == [HOST]
    assert world.sent == judge.sent == [HOST, CARD] and policy.sent == []


def test_what_the_policy_computes_with_stays():
    trunk, judge = Movable(), Movable()
    with in_host_memory((Part(nn.Sequential(trunk)), judge), nn.Sequential(trunk, nn.Linear(2, 1)), CARD):
        pass
    assert trunk.sent == [] and judge.sent == [HOST, CARD]


def test_they_come_back_where_learning_is_interrupted():
    world = Movable()
    with pytest.raises(KeyboardInterrupt), in_host_memory((world,), nn.Linear(1, 1), CARD):
        raise KeyboardInterrupt
    assert world.sent == [HOST, CARD]


def practise(tiny, folder, offload, monkeypatch):
    """One practice, and in which order the networks moved and the policy learnt."""
    engine, seen = tiny.engine(horizon=8), []
    with monkeypatch.context() as patch, RunFolder.create(folder, {}) as run:
        for name, network in (("world", engine.world.network), ("reflector", engine.reflector)):
            patch.setattr(network, "to", lambda device, name=name: seen.append(name))
        update = Learner.update

        def learn(*given):
            seen.append("update" if engine.runner.episodes is None else "update beside slots")
            return update(*given)

        patch.setattr(Learner, "update", learn)
        post_train(engine, tiny.starts(6), replace(CONFIG, offload=offload), run, seed=4)
        lines = run.metrics(STAGE)
    costs = [line.pop("offload_s", None) for line in lines]
    figures = [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]
    return engine.policy, figures, seen, costs


def test_practice_is_the_same_to_the_last_bit(tiny, tmp_path, monkeypatch, same_weights):
    plain, figures, seen, costs = practise(tiny, tmp_path / "plain", "off", monkeypatch)
    assert seen == 2 * ["update beside slots"] and costs == [None, None]
    apart, same_figures, seen, costs = practise(tiny, tmp_path / "apart", "on", monkeypatch)
    assert seen == 2 * ["world", "reflector", "update", "world", "reflector"] and all(cost >= 0 for cost in costs)
    assert same_weights(plain, apart) and figures == same_figures
    assert not same_weights(plain, tiny.policy())
