import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.conv_int8 as module
from worldenv import ops
from worldenv.ops.conv_int8 import conv_int8
from worldenv.ops.packed import Layer, Packed, pack, quantise

STEP, ZERO = 0.03, 100


def layer(inputs, outputs, window, seed=0):
    draw = torch.Generator().manual_seed(seed)
    levels = torch.randint(-127, 128, (outputs, inputs, window, window), generator=draw).to(torch.int8)
    factor = 0.5 + torch.rand(outputs, generator=draw)
    factor, summand = STEP * factor / (64 * window * inputs**0.5), torch.randn(outputs, generator=draw)
    return Layer(pack(levels, factor, summand - ZERO * factor * levels.flatten(1).sum(1)), STEP, ZERO)


def inputs(b=2, h=7, w=6, c=12, o=20, window=3, stride=1, relu=False, onto=False, to=(0.0, 0), levels=False, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(b, h, w, c, generator=draw)
    x = quantise(x, STEP, ZERO) if levels else x
    shape = b, -(-h // stride), -(-w // stride), o
    more = torch.randn(shape, generator=draw) if onto else None
    return x, layer(c, o, window, seed), o, stride, relu, more, to


def by_reference(*arguments, **options):
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        return conv_int8(*arguments, **options)
    finally:
        ops.BACKEND = before


def assert_same(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.dtype == torch.uint8:  # a sum near the middle between two levels
        assert ((actual.int() - expected.int()).abs() <= 1).all() and (actual == expected).float().mean() > 0.999
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


GIVEN = [
    {"b": 0},
    {},
    {"b": 1, "h": 1, "w": 1, "c": 4, "o": 1, "window": 1},
    {"h": 32, "w": 32, "c": 12, "o": 32, "relu": True, "to": (0.02, 0), "levels": True},
    {"h": 32, "w": 32, "c": 32, "o": 64, "stride": 2, "relu": True, "levels": True},
    {"h": 9, "w": 9, "c": 40, "o": 80, "stride": 2},
    {"h": 8, "w": 5, "stride": 3, "window": 5, "onto": True},
    {"h": 1, "w": 50, "c": 156, "o": 40, "window": 1, "onto": True, "relu": True, "levels": True},
    {"h": 4, "w": 9, "c": 160, "o": 320, "window": 1},
    {"c": 6, "o": 9},  # filled up to whole fours
    {"o": 24, "to": (0.05, 200)},
    {"w": 9, "o": 12},
    {"w": 9, "o": 35},
    {"o": 40},
    {"o": 56},
    {"w": 17, "o": 88},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_compiled_face_equals_the_reference(given):
    arguments = inputs(**given)
    assert_same(conv_int8(*arguments), by_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
@pytest.mark.parametrize("given", [{"stride": 2, "onto": True, "o": 40}, {"relu": True, "to": (0.05, 10)}], ids=str)
def test_lower_instruction_sets_give_the_same(level, given, at_level):
    arguments = inputs(**given)
    assert_same(at_level(level, "conv_int8", *arguments), by_reference(*arguments))


@pytest.mark.parametrize("face", [conv_int8, by_reference])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_convolution_of_the_rounded_numbers(face, stride):
    x, given, o, *_ = inputs(stride=stride)
    blocks, rows, _, _, _ = given.packed.weights.shape
    weight = given.packed.weights.permute(0, 3, 1, 2, 4).reshape(blocks * 16, rows, 3, 12)[:o].float()
    factor, summand = given.packed.affine[:, :o]
    summand = summand + ZERO * factor * weight.sum((1, 2, 3))
    rounded = ((x / STEP).round() + ZERO).clamp(0, 255) - ZERO
    weight = weight.permute(0, 3, 1, 2) * factor[:, None, None, None]
    expected = F.conv2d(rounded.permute(0, 3, 1, 2), weight, summand, stride, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(face(x, given, o, stride), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("face", [conv_int8, by_reference])
def test_numbers_go_to_the_nearest_level_and_come_back_on_one(face):
    """By a layer that multiplies by one: levels in, the same levels out, clamped at both ends; NaN is 0."""
    x = torch.tensor([0.0, 0.5, -0.5, 0.24, 0.26, 0.25, 0.75, 1e9, -1e9, float("inf"), -float("inf"), float("nan")])
    expected = torch.tensor([10, 11, 9, 10, 11, 10, 12, 255, 0, 255, 0, 10], dtype=torch.uint8)
    eye = torch.eye(12, dtype=torch.int8)
    once = Layer(pack(eye, torch.full((12,), 0.5), torch.full((12,), -5.0)), 0.5, 10)
    got = face(x.view(1, 1, 1, 12), once, 12, to=(0.5, 10))
    assert got.dtype == torch.uint8 and torch.equal(got.flatten(), expected)
    torch.testing.assert_close(face(x.view(1, 1, 1, 12), once, 12).flatten(), (expected.float() - 10) / 2)


def test_image_gives_the_same_alone_and_in_a_batch():
    x, given, o, *_ = inputs(b=9)
    together = conv_int8(x, given, o)
    assert torch.equal(conv_int8(x[4:5], given, o)[0], together[4])


def test_operator_passes_opcheck():
    for given in ({"b": 1}, {"b": 1, "stride": 2, "onto": True, "to": (0.1, 7), "levels": True}):
        x, conv, o, stride, relu, onto, to = inputs(**given)
        arguments = (x, *conv.packed, *conv[1:], o, stride, relu, onto, *to)
        torch.library.opcheck(torch.ops.worldenv.conv_int8.default, arguments)


def test_operator_is_traced_without_a_graph_break():
    x, *others = inputs(stride=2)

    def step(x):
        return conv_int8(x * 1.0, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), step(x))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "conv_int8_reference", lambda *arguments: "reference")
    assert conv_int8(*inputs()) == "reference"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 7, 12), r"x is torch.float32 \[2, 7, 12\]; it should be float32 or uint8 \[B, H, W, I\]"),
        (0, torch.zeros(2, 7, 6, 12).double(), r"x is torch.float64 \[2, 7, 6, 12\]; it should be float32 or uint8"),
        (0, torch.zeros(2, 7, 6, 0), r"x is torch.float32 \[2, 7, 6, 0\]; it should be"),
        (0, torch.zeros(2, 7, 6, 16), r"layer has weights torch.int8 \[2, 3, 9, 16, 4\]; .* \[2, 3, 12, 16, 4\]"),
        (0, torch.zeros(2, 7, 6, 12, device="meta"), "x is on meta; it should be on cpu, as the layer is"),
        (1, Layer(Packed(torch.zeros(2, 3, 9, 16, 4), torch.zeros(2, 32)), 0.1, 0), "layer has weights torch.float32"),
        (1, Layer(Packed(torch.zeros(2, 2, 6, 16, 4).char(), torch.zeros(2, 32)), 0.1, 0), r"\[2, 2, 6, 16, 4\]"),
        (1, layer(12, 20, 3)._replace(step=0.0), "step is 0.0 and zero 100; they should be positive and in"),
        (1, layer(12, 20, 3)._replace(step=1e-50), "step is 1e-50 and zero 100; they should be positive and in"),
        (6, (float("inf"), 3), "step is inf and zero 3; they should be positive and in"),
        (2, 40, r"layer has weights torch.int8 \[2, 3, 9, 16, 4\]; wanted: torch.int8 \[3, 3, 9, 16, 4\]"),
        (3, 0, "stride is 0 and outputs 20; they should be positive"),
        (5, torch.zeros(2, 7, 6, 19), r"onto has shape \[2, 7, 6, 19\]; it should be \[2, 7, 6, 20\]"),
        (6, (0.1, 300), "step is 0.1 and zero 300; they should be positive and in"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        conv_int8(*arguments)
