import pytest
import torch

import worldenv.ops.residual_int8 as module
from worldenv import ops
from worldenv.ops.adagn import adagn_reference
from worldenv.ops.packed import Layer, Packed, pack
from worldenv.ops.residual_int8 import residual_int8

NEAR, FAR = 1e-3, 0.1  # of the result's spread, on average and at most: a level may be the next one


def layer(draw, inputs, outputs, window, low=-0.3, high=5.0):
    step, zero = (high - low) / 255, round(-low * 255 / (high - low))
    weight = torch.randn(outputs, inputs, window, window, generator=draw) / (inputs * window**2) ** 0.5
    scale = weight.abs().amax() / 127
    levels = (weight / scale).round().to(torch.int8)
    summand = torch.randn(outputs, generator=draw) / 4 - step * scale * zero * levels.flatten(1).sum(1)
    return Layer(pack(levels, torch.full((outputs,), step * scale), summand), step, zero)


def inputs(b=2, c=40, o=40, h=8, w=6, more=0, groups=4, activation="silu", first=True, condition=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(b, c, h, w, generator=draw).to(memory_format=torch.channels_last)
    beside = torch.randn(b, 4 * more, h // 2, w // 2, generator=draw) if more else None
    c += more
    norm1, norm2 = ((1 + torch.randn(n, generator=draw) / 4, torch.randn(n, generator=draw) / 4) for n in (c, o))
    pair = tuple(torch.randn(b, o, generator=draw) / 4 for _ in range(2))
    conv1, conv2 = (layer(draw, n, o, 3) for n in (c, o))
    skip = layer(draw, c, o, 1, -4.0, 4.0) if c != o else None
    return (
        x,
        groups,
        activation,
        norm1 if first else None,
        conv1,
        norm2,
        pair if condition else None,
        conv2,
        skip,
        beside,
    )


def by_reference(*arguments):
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        return residual_int8(*arguments)
    finally:
        ops.BACKEND = before


def assert_same(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.numel():
        error = (actual - expected).abs() / expected.std()
        assert error.mean() < NEAR and error.max() < FAR


@pytest.mark.parametrize(
    "given",
    [
        {"b": 0},
        {},
        {"b": 1, "c": 4, "o": 4, "h": 1, "w": 1, "groups": 2, "first": False},
        {"c": 64, "o": 64, "h": 16, "w": 16, "groups": 8, "activation": "relu", "first": False},
        {"c": 80, "o": 80, "h": 16, "w": 16, "groups": 8},
        {"c": 12, "o": 20, "h": 5, "w": 7},
        {"c": 40, "o": 40, "more": 40, "h": 32, "w": 32, "groups": 8},
        {"c": 8, "o": 8, "more": 8, "h": 2, "w": 10, "condition": False, "activation": "none"},
    ],
    ids=str,
)
def test_compiled_face_equals_the_reference(given):
    arguments = inputs(**given)
    assert_same(residual_int8(*arguments), by_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(c=20, o=28, more=8)
    assert_same(at_level(level, "residual_int8", *arguments), by_reference(*arguments))


@pytest.mark.parametrize("face", [residual_int8, by_reference])
@pytest.mark.parametrize("more", [0, 8])
def test_it_is_the_block_in_floats_but_for_rounding(face, more):
    x, groups, activation, norm1, conv1, norm2, condition, conv2, skip, beside = arguments = inputs(more=more)

    def conv(x, layer, window):
        blocks, rows, _, _, _ = layer.packed.weights.shape
        weight = layer.packed.weights.permute(0, 3, 1, 2, 4).reshape(blocks * 16, rows, -1, x.shape[1])[:40].float()
        factor, summand = layer.packed.affine[:, :40]
        summand = summand + factor * layer.zero * weight.sum((1, 2, 3))
        weight = weight.permute(0, 3, 1, 2) * (factor / layer.step)[:, None, None, None]
        return torch.nn.functional.conv2d(x, weight, summand, padding=window // 2)

    if more:
        x = torch.cat([x, torch.nn.functional.pixel_shuffle(beside, 2)], dim=1)
    h = conv(adagn_reference(x, groups, *norm1, None, None, activation), conv1, 3)
    h = conv(adagn_reference(h, groups, *norm2, *condition, activation), conv2, 3)
    expected = h + (conv(x, skip, 1) if more else x)
    assert (face(*arguments) - expected).abs().mean() < 0.02 * expected.std()


def test_result_is_channels_last_and_any_layout_is_read():
    x, *others = inputs()
    expected = residual_int8(x, *others)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(residual_int8(x.contiguous(), *others), expected)


def test_episode_gives_the_same_alone_and_in_a_batch():
    x, groups, activation, norm1, conv1, norm2, condition, *others = inputs(b=9, more=0)
    together = residual_int8(x, groups, activation, norm1, conv1, norm2, condition, *others)
    pair = tuple(t[4:5] for t in condition)
    assert torch.equal(residual_int8(x[4:5], groups, activation, norm1, conv1, norm2, pair, *others)[0], together[4])


def test_operator_passes_opcheck():
    x, groups, activation, norm1, conv1, norm2, condition, conv2, _, _ = inputs(b=1)
    rows = x.permute(0, 2, 3, 1)
    given = (
        rows,
        None,
        groups,
        1e-5,
        activation,
        *norm1,
        *conv1.packed,
        *conv1[1:],
        *norm2,
        *condition,
        *conv2.packed,
        *conv2[1:],
        None,
        None,
        0.0,
        0,
    )
    torch.library.opcheck(torch.ops.worldenv.residual_int8.default, given)


def test_operator_is_traced_without_a_graph_break():
    x, *others, beside = inputs(more=8)

    def step(x, beside):
        return residual_int8(x * 1.0, *others, beside) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x, beside), step(x, beside))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "residual_int8_reference", lambda *arguments: torch.zeros(1, 2, 3, 4))
    assert residual_int8(*inputs()).shape == (1, 4, 2, 3)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 40, 8), r"x has shape \[2, 40, 8\]; it should be \[B, C, H, W\]"),
        (0, torch.zeros(2, 40, 8, 6).double(), r"x is torch.float64; .* pass x.float\(\)"),
        (0, torch.zeros(2, 44, 8, 6), "44 channels go in and 40 come out; that needs skip"),
        (1, 7, "groups is 7; it and 4 should divide the 40 and the 40 channels"),
        (2, "gelu", "activation is 'gelu'; it should be one of none, relu, silu"),
        (3, (torch.zeros(39), torch.zeros(40)), r"norm1\[0\] has shape \[39\]; it should be \[40\]"),
        (4, Layer(Packed(torch.zeros(3, 3, 30, 16, 4), torch.zeros(2, 48)), 0.1, 0), "conv1 has weights torch.float32"),
        (4, Layer(Packed(torch.zeros(3, 3, 30, 16, 4).char(), torch.zeros(2, 48)), 0.0, 0), "step is 0.0 and zero 0"),
        (6, (torch.zeros(2, 39), torch.zeros(2, 40)), r"condition\[0\] has shape \[2, 39\]"),
        (9, torch.zeros(2, 42, 4, 3), r"more has shape \[2, 42, 4, 3\]; it should be \[B, 4 M, H / 2, W / 2\]"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        residual_int8(*arguments)
