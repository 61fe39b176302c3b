import pytest
import torch

import worldenv.ops.adagn as module
from worldenv import ops
from worldenv.ops.adagn import ACTIVATIONS, adagn, adagn_reference

TOLERANCE = {torch.float32: 1e-5}  # of values around 1: a sum of squares over thousands of numbers


def inputs(b=2, c=40, h=8, w=6, groups=8, condition=True, activation="silu", mean=0.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(b, c, h, w, generator=draw) + mean
    weight, bias = 1 + torch.randn(c, generator=draw) / 4, torch.randn(c, generator=draw) / 4
    pair = [torch.randn(b, c, generator=draw) / 4 if condition else None for _ in range(2)]
    return x.to(memory_format=torch.channels_last), groups, weight, bias, *pair, activation


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=TOLERANCE[expected.dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize(
    ("b", "c", "h", "w", "groups"),
    [(0, 8, 4, 4, 8), (1, 1, 1, 2, 1), (3, 40, 32, 32, 8), (2, 64, 16, 16, 8), (2, 6, 5, 7, 3), (1, 17, 3, 3, 17)],
)
def test_compiled_face_equals_the_reference(b, c, h, w, groups, condition, activation):
    arguments = inputs(b, c, h, w, groups, condition, activation)
    assert_same(adagn(*arguments), adagn_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(c=48)
    assert_same(at_level(level, "adagn", *arguments), adagn_reference(*arguments))


def test_large_mean_costs_no_precision():
    far, near = inputs(mean=1000.0, activation="none"), inputs(activation="none")
    exact = adagn_reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in far)).float()
    torch.testing.assert_close(adagn(*far), exact, rtol=0.0, atol=1e-3)  # what float32 leaves of x itself
    torch.testing.assert_close(adagn(*far), adagn(*near), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("face", [adagn, adagn_reference])
def test_each_group_has_mean_0_and_variance_1_before_the_condition(face):
    x, *_ = inputs(b=3, c=16, groups=4, mean=2.0)
    y = face(x, 4, torch.ones(16), torch.zeros(16), None, None, "none").reshape(3, 4, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(2, correction=0), torch.ones(3, 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("face", [adagn, adagn_reference])
def test_a_number_that_is_not_finite_spoils_its_episode_and_no_other(face):
    arguments = inputs(b=3, activation="relu")
    clean = face(*arguments)
    arguments[0][1, 5, 2, 2] = float("nan")
    y = face(*arguments)
    assert y[1, 5].isnan().all() and torch.equal(y[::2], clean[::2])


def test_result_is_channels_last_and_any_layout_is_read():
    x, *others = inputs()
    expected = adagn(x, *others)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(adagn(x.contiguous(), *others), expected)


def test_episode_gives_the_same_alone_and_in_a_batch():
    x, groups, weight, bias, scale, shift, activation = inputs(b=9)
    together = adagn(x, groups, weight, bias, scale, shift, activation)
    alone = adagn(x[4:5], groups, weight, bias, scale[4:5], shift[4:5], activation)
    assert torch.equal(alone[0], together[4])


def test_gradient_passes_by_the_reference():
    x, groups, weight, bias, scale, shift, activation = inputs(b=1, c=4, h=2, w=2, groups=2)
    doubles = [t.double().requires_grad_() for t in (x, weight, bias, scale, shift)]

    def function(x, weight, bias, scale, shift):
        return adagn_reference(x, groups, weight, bias, scale, shift, activation)

    assert torch.autograd.gradcheck(function, doubles)
    x, groups, weight, bias, scale, shift, activation = inputs()
    x.requires_grad_()  # with a gradient for the weight alone, torch 2.13 crashes on channels last
    weight.requires_grad_()
    y = adagn(x, groups, weight, bias, scale, shift, activation)
    y.square().sum().backward()
    assert weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not adagn(x, groups, weight, bias).requires_grad


def test_operator_passes_opcheck():
    x, *others = inputs(b=1)
    torch.library.opcheck(torch.ops.worldenv.adagn.default, (x.permute(0, 2, 3, 1), *others, 1e-5))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs()

    def step(x, *others):
        return adagn(x * 1.0, *others) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "adagn_reference", lambda *arguments: "reference ran")
    assert adagn(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 40, 8), r"x has shape \[2, 40, 8\]; it should be \[B, C, H, W\]"),
        (0, torch.zeros(2, 40, 8, 6).double(), r"x is torch.float64; .* pass x.float\(\)"),
        (1, 7, r"groups is 7; it should divide the 40 channels"),
        (2, torch.zeros(39), r"weight has shape \[39\]; it should be \[40\]"),
        (3, torch.zeros(40, device="meta"), r"bias is on meta; it should be on cpu"),
        (4, None, "scale and shift are given together or not at all"),
        (5, torch.zeros(2, 39), r"shift has shape \[2, 39\]; it should be \[2, 40\]"),
        (6, "gelu", "activation is 'gelu'; it should be one of none, relu, silu"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        adagn(*arguments)
