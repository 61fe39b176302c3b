import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.transformer_int8 as module
from worldenv import ops
from worldenv.ops.packed import Layer, Packed, pack
from worldenv.ops.transformer_int8 import transformer_int8, transformer_int8_reference

NEAR, FAR = 2e-3, 0.1  # of the result's spread, on average and at most: a level may be the next one


def layer(draw, inputs, outputs, low, high):
    step, zero = (high - low) / 255, round(-low * 255 / (high - low))
    weight = torch.randn(outputs, inputs, generator=draw) / inputs**0.5
    scale = weight.abs().amax() / 127
    levels = (weight / scale).round().to(torch.int8)
    summand = torch.randn(outputs, generator=draw) / 4 - step * scale * zero * levels.sum(1)
    return Layer(pack(levels, torch.full((outputs,), step * scale), summand), step, zero)


def inputs(b=2, n=9, d=20, heads=5, hidden=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, condition = torch.randn(b, n, d, generator=draw), torch.randn(b, 6 * d, generator=draw) / 2
    sizes = (d, 3 * d, -5, 5), (d, d, -3, 3), (d, hidden, -5, 5), (hidden, d, -0.2, 4)
    return x, condition, heads, hidden, *(layer(draw, *size) for size in sizes)


def reference(x, condition, heads, hidden, *layers):
    parts = [part for layer in layers for part in (*layer.packed, layer.step, layer.zero)]
    return transformer_int8_reference(x, condition, heads, hidden, *parts)


def assert_same(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if actual.numel():
        error = (actual - expected).abs() / expected.std()
        assert error.mean() < NEAR and error.max() < FAR


@pytest.mark.parametrize(
    "given",
    [
        {"b": 0},
        {"b": 1, "n": 1, "d": 4, "heads": 1, "hidden": 4},
        {},
        {"n": 63, "d": 68, "heads": 2, "hidden": 100},
        {"n": 64, "d": 160, "heads": 5, "hidden": 640},
        {"n": 100, "d": 12, "heads": 12, "hidden": 16},
    ],
    ids=str,
)
def test_compiled_face_equals_the_reference(given):
    arguments = inputs(**given)
    assert_same(transformer_int8(*arguments), reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(n=21, d=36, heads=3)
    assert_same(at_level(level, "transformer_int8", *arguments), reference(*arguments))


@pytest.mark.parametrize("face", [transformer_int8, reference])
def test_it_is_the_layer_in_floats_but_for_rounding(face):
    x, condition, heads, hidden, *layers = arguments = inputs(n=16, d=40, hidden=64)

    def linear(x, layer, outputs):
        weight = layer.packed.weights[:, 0].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:outputs].float()
        factor, summand = layer.packed.affine[:, :outputs]
        return x @ (weight * factor[:, None] / layer.step).T + summand + factor * layer.zero * weight.sum(1)

    def norm(x, scale, shift):
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale[:, None]) + shift[:, None]

    scale1, shift1, gate1, scale2, shift2, gate2 = condition.chunk(6, dim=1)
    qkv = linear(norm(x, scale1, shift1), layers[0], 120).view(2, 16, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(2, 16, 40)
    x = x + gate1[:, None] * linear(attended, layers[1], 40)
    h = F.gelu(linear(norm(x, scale2, shift2), layers[2], 64), approximate="tanh")
    expected = x + gate2[:, None] * linear(h, layers[3], 40)
    assert (face(*arguments) - expected).abs().mean() < 0.02 * expected.std()


def test_large_scores_overflow_nothing():
    x, condition, *others = inputs()
    condition[:, :20] = 1e4
    assert transformer_int8(x, condition, *others).isfinite().all()


def test_episode_gives_the_same_alone_and_in_a_batch():
    x, condition, *others = inputs(b=9)
    together = transformer_int8(x, condition, *others)
    assert torch.equal(transformer_int8(x[4:5], condition[4:5], *others)[0], together[4])


@pytest.mark.parametrize("face", [transformer_int8, reference])
def test_a_number_that_is_not_finite_stays_one_and_spoils_no_other_episode(face):
    x, *others = inputs(b=3)
    clean = face(x, *others)
    x[1, 2, 3] = float("nan")
    y = face(x, *others)
    assert y[1, 2, 3].isnan() and torch.equal(y[::2], clean[::2])


def test_operator_passes_opcheck():
    x, condition, heads, hidden, *layers = inputs(b=1)
    parts = [part for layer in layers for part in (*layer.packed, layer.step, layer.zero)]
    torch.library.opcheck(torch.ops.worldenv.transformer_int8.default, (x, condition, heads, hidden, *parts))


def test_operator_is_traced_without_a_graph_break():
    x, condition, *others = inputs()

    def step(x, condition):
        return transformer_int8(x * 1.0, condition, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x, condition), step(x, condition))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "transformer_int8_reference", lambda *arguments: "reference ran")
    assert transformer_int8(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 9), r"x has shape \[2, 9\]; it should be \[B, N, D\]"),
        (0, torch.zeros(2, 9, 20).double(), r"x is torch.float64; .* pass x.float\(\)"),
        (1, torch.zeros(2, 119), r"condition has shape \[2, 119\]; it should be \[2, 120\]"),
        (2, 3, "heads is 3 and hidden 32; D = 20 should be a multiple of heads, both of 4"),
        (4, Layer(Packed(torch.zeros(4, 1, 5, 16, 4), torch.zeros(2, 64)), 0.1, 0), "qkv has weights torch.float32"),
        (5, Layer(Packed(torch.zeros(2, 1, 5, 16, 4).char(), torch.zeros(2, 20)), 0.1, 0), "merge.packed.affine has"),
        (7, Layer(Packed(torch.zeros(2, 1, 8, 16, 4).char(), torch.zeros(2, 32)), 0.0, 0), "step is 0.0 and zero 0"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        transformer_int8(*arguments)
