"""Weights that the caller changes after an engine or environment was made act everywhere, or are refused."""

import pytest
import torch
from torch import nn

from worldenv.assemble import make_engine
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.errors import UserError
from worldenv.nn.int8 import Int8, in_int8, measured
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.graphs import Graphs
from worldenv.rollout.weights import Weights

HORIZON = EngineConfig(horizon=8)


@pytest.fixture(scope="module")
def ranges(tiny):
    parts, found = tiny.parts(size=32), {}
    engine = make_engine(parts, HORIZON, "float32")
    for name, network in parts.networks().items():
        with measured(network) as ranges:
            engine.run(tiny.starts(5, 32), 2, 0)
        found[name] = ranges
    return found


def in_8_bits(parts, ranges):
    policy, reflector = (in_int8(getattr(parts, name), ranges[name]) for name in ("policy", "reflector"))
    return policy, parts.world.in_int8(ranges["world"]), reflector


def imagined(engine, starts):
    return list(engine.run(starts, 2, 0, stop=False, video=True).tensors())


def same(mine, others):
    return all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


def layer_of(network, path):
    return network.get_submodule(path)


def new_weight(layer):
    noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    return layer.weight.detach() + 0.5 * layer.weight.detach().abs().mean() * noise


@torch.no_grad()
def in_place(network, path):
    layer_of(network, path).weight.copy_(new_weight(layer_of(network, path)))


def load_state_dict(network, path):
    network.load_state_dict(network.state_dict() | {f"{path}.weight": new_weight(layer_of(network, path))})


def assign_state_dict(network, path):
    state = network.state_dict() | {f"{path}.weight": new_weight(layer_of(network, path))}
    network.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)


def through_data(network, path):
    layer_of(network, path).weight.data.copy_(new_weight(layer_of(network, path)))


def one_number_through_data(network, path):
    layer_of(network, path).weight.data.view(-1)[3] += 10


def other_data(network, path):
    layer_of(network, path).weight.data = new_weight(layer_of(network, path))


def other_parameter(network, path):
    layer_of(network, path).weight = nn.Parameter(new_weight(layer_of(network, path)))


def bias_alone(network, path):
    layer_of(network, path).bias.data.add_(0.3)


CHANGES = [
    in_place,
    load_state_dict,
    assign_state_dict,
    through_data,
    one_number_through_data,
    other_data,
    other_parameter,
    bias_alone,
]
PLACES = [
    ("policy", "encoder.stem.3"),  # in 8 bits
    ("world", "down1"),  # likewise
    ("reflector", "encoder.out"),  # in floats, by rows
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("part", "path"), PLACES)
def test_an_engine_acts_with_weights_that_were_changed_after_it_was_made(tiny, ranges, part, path, change):
    parts, starts = tiny.parts(size=32), tiny.starts(5, 32)
    engine = Engine(*in_8_bits(parts, ranges), HORIZON)
    before = imagined(engine, starts)
    change(parts.networks()[part], path)
    after = imagined(engine, starts)
    assert not same(before, after)
    assert same(after, imagined(Engine(*in_8_bits(parts, ranges), HORIZON), starts))


def test_weights_that_did_not_change_are_not_packed_again(tiny, ranges, monkeypatch):
    engine = Engine(*in_8_bits(tiny.parts(size=32), ranges), HORIZON)
    packed = []
    monkeypatch.setattr(Int8, "_packed", lambda layer: packed.append(layer))
    engine.run(tiny.starts(5, 32), 2, 0)
    assert not packed


@pytest.mark.parametrize("change", CHANGES)
def test_an_environment_goes_on_with_weights_that_changed_between_two_steps(tiny, ranges, change):
    parts, starts = tiny.parts(size=32), tiny.starts(5, 32)
    seen, (_, world, reflector) = [], in_8_bits(parts, ranges)
    for early in (True, False):
        env = WorldModelEnv(world, reflector, starts, EnvConfig(envs=5, horizon=40))
        env.seed(0)
        env.reset()
        if early:
            change(parts.networks()["world"], "down1")
        observation, *others = env.step(torch.full((5, 4, 7), 0.3))
        seen.append([*observation.values(), *others])
    assert same(*seen)


def replaced_module(parts):
    parts.policy.encoder.stem[1] = nn.Sequential(parts.policy.encoder.stem[1])


def parametrized(parts):
    torch.nn.utils.parametrizations.weight_norm(parts.policy.encoder.stem[1])


def replaced_far_up(parts):
    parts.policy.encoder = nn.Identity()


def nan(parts):
    parts.policy.encoder.stem[1].weight.data[0, 0, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replaced_module, "the layers of a Stem were replaced after its copy in 8 bits was made: make the engine"),
        (parametrized, "the layers of a .*Conv were replaced after its copy"),
        (replaced_far_up, "the layers of a SmallPolicy were replaced after its copy"),
        (nan, "a weight is not finite; it cannot be rounded to 8 bits"),
        (
            lambda parts: parts.policy.double(),
            "a weight is torch.float64 on cpu; layers in 8 bits",
        ),
        (
            lambda parts: parts.policy.to("meta"),
            "a weight is torch.float32 on meta; layers in 8 bits .* CPU",
        ),
    ],
)
def test_changes_that_8_bits_cannot_follow_are_refused(tiny, ranges, change, says):
    parts = tiny.parts(size=32)
    engine = Engine(*in_8_bits(parts, ranges), HORIZON)
    change(parts)
    with pytest.raises(UserError, match=says):
        engine.run(tiny.starts(5, 32), 2, 0)


def test_graphs_that_read_tensors_which_were_replaced_are_dropped(tiny):
    layer = nn.Linear(3, 2)
    layer.register_buffer("mean", torch.zeros(3))
    layer.angle = torch.zeros(3)  # a tensor that is neither a parameter nor a buffer
    weights = Weights(layer)
    assert [weights.renew(on_gpu) for on_gpu in (False, True, True)] == [False] * 3
    layer.mean.add_(1)
    assert not weights.renew(True)  # a recorded graph reads the new numbers
    kept = layer.mean, layer.angle
    layer.mean = torch.zeros(3)
    assert weights.renew(True) and not weights.renew(True)
    layer.angle = torch.zeros(3)
    assert weights.renew(True) and not weights.renew(True) and kept is not None


def test_a_runner_records_again_when_weights_were_replaced(tiny, monkeypatch):
    engine = tiny.engine()
    graphs = engine.runner.graphs
    for replaced in (False, True):
        monkeypatch.setattr(Weights, "renew", lambda weights, on_gpu, replaced=replaced: replaced)
        with engine.runner.alone():
            assert (engine.runner.graphs is graphs) != replaced
    assert isinstance(engine.runner.graphs, Graphs)
