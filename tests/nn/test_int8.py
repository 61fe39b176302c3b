"""Layers in 8 bits: near the floats, the same for an episode in any batch, and nothing but a view of the layer."""

import os

import pytest
import torch
from torch import nn

from worldenv.assemble import make_engine
from worldenv.nn.int8 import Conv, Int8, Linear, Rowwise, RowwiseGRU, by_rows, in_int8, is_allowed, is_fast, measured
from worldenv.rollout.engine import Engine, EngineConfig


def net(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(Conv(6, 8, 3, padding=1), nn.ReLU(), Conv(8, 5, 3, padding=1))
    return nn.ModuleDict({"body": body, "head": nn.Sequential(nn.Flatten(2), Linear(35, 9))})


def run(model, x):
    return model["head"](model["body"](x.to(memory_format=torch.channels_last)))


@pytest.fixture
def x():
    return torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ranges(x):
    model = net()
    with measured(model) as found:
        run(model, x)
    return found


def test_ranges_are_those_of_the_inputs(x, ranges):
    assert set(ranges) == {"body.0", "body.2", "head.1"}
    assert ranges["body.0"] == (x.min().item(), x.max().item())
    hidden = net()["body"][0](x).relu()
    assert ranges["body.2"] == pytest.approx((0.0, hidden.max().item()))


def test_measuring_ends_with_its_block(x, ranges):
    model = net()
    with measured(model) as found:
        run(model, x)
    run(model, 5 * x)
    assert found == ranges


@torch.no_grad()
def test_results_are_near_those_of_floats(x, ranges):
    expected, actual = run(net(), x), run(in_int8(net(), ranges), x)
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    error = (actual - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.03


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_rounding_is_all_that_differs(x, stride):
    torch.manual_seed(0)
    conv = Conv(6, 8, 3, stride=stride, padding=1)
    layer = Int8(conv, (-3.0, 2.0))
    _, step, zero = layer.layer
    scale = conv.weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = ((x / step).round().add(zero).clamp(0, 255) - zero) * step
    expected = nn.functional.conv2d(rounded, (conv.weight / scale).round() * scale, conv.bias, stride, 1)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pixels_are_read_as_they_are():
    torch.manual_seed(0)
    pixels = torch.randint(256, (2, 6, 5, 7), dtype=torch.uint8).to(memory_format=torch.channels_last)
    for layer, x, inner in (
        (Conv(6, 8, 3, padding=1), pixels, (..., slice(1, -1), slice(1, -1))),
        (Linear(7, 9), pixels.contiguous(), ...),
        (Linear(7, 9, bias=False), pixels.contiguous(), ...),
    ):
        with measured(nn.Sequential(layer)) as ranges:
            expected = layer(x)
        torch.testing.assert_close(expected, layer(x.float() / 127.5 - 1))
        assert list(ranges.values()) == [None] or not ranges
        error = Int8(layer, None)(x)[inner] - expected[inner]
        assert error.abs().max() < 0.02 * expected.std()  # of the weights' rounding alone


@torch.no_grad()
def test_an_episode_gives_the_same_alone_and_in_a_batch(x, ranges):
    model = in_int8(net(), ranges)
    assert torch.equal(run(model, x[2:3]), run(model, x)[2:3])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(6,), (3, 6), (0, 6), (4, 5, 6), (0, 5, 6), (2, 3, 4, 6), (2, 0, 4, 6)])
def test_linear_layers_take_any_leading_dimensions(shape):
    torch.manual_seed(0)
    layer, x, onto = Linear(6, 9), torch.randn(shape), torch.randn(*shape[:-1], 9)
    expected = layer(x, onto=onto)
    actual = Int8(layer, (-4.0, 4.0))(x, onto=onto)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 1), "padding": (1, 0)},
        {"padding": 0},
        {"stride": (1, 2)},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
    ],
    ids=str,
)
def test_a_convolution_of_another_kind_is_refused(options):
    with pytest.raises(ValueError, match="has no 8-bit version: its window should be odd and square, its padding half"):
        Int8(Conv(4, 4, **{"kernel_size": 3, "padding": 1, **options}), (0.0, 1.0))


def test_parameters_are_shared_and_the_module_itself_is_left_as_it_was(x, ranges):
    model = net()
    small = in_int8(model, ranges)
    assert isinstance(small["body"][0], Int8) and isinstance(model["body"][0], Conv)
    assert small.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert small.state_dict(keep_vars=True)[name] is tensor


@torch.no_grad()
def test_layers_without_a_range_stay_floats(x, ranges):
    model = in_int8(net(), {"body.0": ranges["body.0"]})
    assert isinstance(model["body"][0], Int8) and type(model["body"][2]) is Conv and type(model["head"][1]) is Linear


def floats(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({"read": nn.GRU(5, 24, batch_first=True), "out": nn.Linear(24, 7)}).eval()


@torch.no_grad()
def test_what_stays_in_floats_becomes_independent_of_the_batch():
    exact = floats()
    model = in_int8(exact, {})
    assert type(model["out"]) is Rowwise and type(model["read"]) is RowwiseGRU and type(exact["out"]) is nn.Linear
    for name, tensor in exact.state_dict(keep_vars=True).items():
        assert model.state_dict(keep_vars=True)[name] is tensor
    x = torch.randn(9, 6, 5)
    hidden, last = model["read"](x)
    expected = *exact["read"](x), exact["out"](hidden)
    for one, other in zip((hidden, last, model["out"](hidden)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for part in (slice(4, 5), slice(2, 5), slice(1, 9)):
        alone, _ = model["read"](x[part])
        assert torch.equal(alone, hidden[part]) and torch.equal(model["out"](alone), model["out"](hidden)[part])


def test_what_stays_in_floats_passes_gradients_and_sees_updates():
    exact = floats()
    model, x = in_int8(exact, {}), torch.randn(3, 24)
    exact["out"](x).square().sum().backward()
    gradient = exact["out"].weight.grad.clone()
    exact.zero_grad()
    model["out"](x).square().sum().backward()
    assert gradient.any() and torch.equal(exact["out"].weight.grad, gradient)
    before = model["out"](x).detach()
    torch.optim.SGD(model["out"].parameters(), 0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(model["out"](x), exact["out"](x), rtol=0, atol=1e-5)
        assert not torch.equal(model["out"](x), before)


def test_a_gru_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="it should have one layer, one direction, biases and batch_first"):
        in_int8(nn.ModuleDict({"read": nn.GRU(5, 6, bidirectional=True, batch_first=True)}), {})


@pytest.mark.parametrize("function", [torch.sigmoid, nn.functional.silu])
def test_numbers_by_rows_are_the_same_in_any_company(function):
    x = torch.randn(50, 28, generator=torch.Generator().manual_seed(2))
    expected = by_rows(function, x)
    torch.testing.assert_close(expected, function(x))
    for rows in range(1, 8):
        assert torch.equal(by_rows(function, x[9 : 9 + rows]), expected[9 : 9 + rows])


def test_a_weight_that_is_not_finite_is_refused(ranges):
    model = net()
    model["body"][2].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="a weight is not finite; it cannot be rounded to 8 bits"):
        in_int8(model, ranges)


@torch.no_grad()
def test_policy_world_model_and_reflector_of_a_rollout_stay_near_their_floats(tiny):
    parts, starts = tiny.parts(size=32), tiny.starts(5, 32)
    engine, found = make_engine(parts, EngineConfig(horizon=8)), {}
    for name, network in parts.networks().items():
        with measured(network) as ranges:
            engine.run(starts, 2, 0)
        found[name] = ranges
    exact = engine.run(starts, 2, 0, stop=False, video=True)
    policy, reflector = (in_int8(getattr(parts, name), found[name]) for name in ("policy", "reflector"))
    small = Engine(policy, parts.world.in_int8(found["world"]), reflector, engine.config)
    near = small.run(starts, 2, 0, stop=False, video=True)
    assert 0 < (near.video.float() - exact.video.float()).abs().mean() < 20  # of noise composed by untrained weights
    assert 0 < (near.reward - exact.reward).abs().mean() < 0.05
    assert 0 < (near.action - exact.action).abs().mean() < 0.01


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="no /proc here")
def test_8_bits_are_fast_and_allowed_where_the_kernel_says_that_the_cpu_has_the_instructions():
    # Everything that needs 8 bits is skipped where these two say no: they must not say so wrongly.
    with open("/proc/cpuinfo") as file:
        flags = set(file.read().split())
    assert is_fast() == bool(flags & {"avx512_vnni", "avx_vnni"})
    assert is_allowed() == bool(flags & {"avx512_vnni", "avx_vnni", "avx2"})
