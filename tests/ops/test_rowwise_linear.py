import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.rowwise_linear as module
from worldenv import ops
from worldenv.ops.rowwise_linear import rowwise_linear, rowwise_linear_reference

TOLERANCE = {torch.float32: 1e-5}


def inputs(rows=5, i=35, o=17, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, weight, b = (torch.randn(shape, generator=draw) for shape in ((rows, i), (o, i), (o,)))
    return x, weight / max(1, i) ** 0.5, b if bias else None


def assert_near(actual, x, weight, bias):
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
    torch.testing.assert_close(actual, exact, rtol=TOLERANCE[torch.float32], atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "i", "o"),
    [
        (0, 8, 8),
        (1, 1, 1),
        (1, 16, 16),
        (1, 33, 19),
        (2, 7, 64),
        (3, 0, 5),
        (4, 5, 0),
        (5, 35, 17),
        (64, 64, 4),
        (67, 320, 21),
        (200, 256, 28),
    ],
)
def test_compiled_face_equals_the_reference(rows, i, o, bias):
    arguments = inputs(rows, i, o, bias)
    actual = rowwise_linear(*arguments)
    assert actual.shape == (rows, o) and actual.dtype == torch.float32
    assert_near(actual, *arguments)
    assert_near(rowwise_linear_reference(*arguments), *arguments)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, rows, at_level):
    arguments = inputs(rows)
    assert_near(at_level(level, "rowwise_linear", *arguments), *arguments)


@pytest.mark.parametrize(("i", "o"), [(1, 1), (7, 64), (35, 33), (64, 128), (320, 80)])
def test_a_row_is_the_same_in_any_company_and_at_any_place(i, o):
    x, weight, bias = inputs(131, i, o)
    expected = rowwise_linear(x, weight, bias)
    for rows in (1, 2, 3, 4, 5, 32, 65):
        for first in (0, 1, 66):
            part = slice(first, first + rows)
            assert torch.equal(rowwise_linear(x[part], weight, bias), expected[part]), part


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_a_row_is_the_same_in_any_company_on_lower_instruction_sets(level, at_level):
    x, weight, bias = inputs(7)
    expected = at_level(level, "rowwise_linear", x, weight, bias)
    for part in (slice(3, 4), slice(2, 5)):
        assert torch.equal(at_level(level, "rowwise_linear", x[part], weight, bias), expected[part])


def test_alignment_and_threads_change_no_bit():
    x, weight, bias = inputs(130, 35, 200)
    expected = rowwise_linear(x, weight, bias)

    def shifted(tensor, by):
        return torch.empty(tensor.numel() + by)[by:].view_as(tensor).copy_(tensor)

    for by in (1, 3, 8):
        assert torch.equal(rowwise_linear(shifted(x, by), shifted(weight, by + 1), shifted(bias, 1)), expected)
    torch.set_num_threads(3)
    try:
        assert torch.equal(rowwise_linear(x, weight, bias), expected)
    finally:
        torch.set_num_threads(1)


def test_input_may_be_strided_and_of_any_dimensions():
    x, weight, bias = inputs(6)
    expected = rowwise_linear(x, weight, bias)
    assert torch.equal(rowwise_linear(x.T.contiguous().T, weight.T.contiguous().T, bias), expected)
    assert torch.equal(rowwise_linear(x.view(2, 3, 35), weight, bias), expected.view(2, 3, 17))
    assert torch.equal(rowwise_linear(x[4], weight, bias), expected[4])


def test_what_is_not_a_number_spoils_its_own_row_alone():
    x, weight, bias = inputs(6)
    expected = rowwise_linear(x, weight, bias)
    x[3, 34], x[1, 0] = torch.nan, torch.inf
    actual = rowwise_linear(x, weight, bias)
    assert actual[3].isnan().all() and actual[1].isinf().all()
    assert torch.equal(actual[[0, 2, 4, 5]], expected[[0, 2, 4, 5]])


def test_where_a_gradient_is_wanted_it_is_the_linear_layer_of_torch():
    x, weight, bias = inputs()
    weight.requires_grad_()
    y = rowwise_linear(x, weight, bias)
    assert torch.equal(y, F.linear(x, weight, bias))
    y.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(17, -1))
    with torch.no_grad():
        assert not rowwise_linear(x, weight, bias).requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_operator_passes_opcheck(bias):
    torch.library.opcheck(torch.ops.worldenv.rowwise_linear.default, inputs(bias=bias))


def test_operator_is_traced_without_a_graph_break():
    def step(x, *others):
        return rowwise_linear(x * 2.0, *others) + 1

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(*inputs()), step(*inputs()))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "rowwise_linear_reference", lambda *arguments: "reference ran")
    assert rowwise_linear(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.tensor(1.0), r"x has shape \[\] and weight \[17, 35\]; they should be \[..., I\] and \[O, I\]"),
        (0, torch.zeros(5, 34), r"x has shape \[5, 34\]; it should be \[5, 35\]"),
        (0, torch.zeros(5, 35).half(), r"x is torch.float16; .* pass x.float\(\)"),
        (1, torch.zeros(35), r"x has shape \[5, 35\] and weight \[35\]; they should be"),
        (1, torch.zeros(17, 35).double(), "weight is torch.float64; it should be torch.float32"),
        (2, torch.zeros(16), r"bias has shape \[16\]; it should be \[17\]"),
        (2, torch.zeros(17).to("meta"), "bias is on meta; it should be on cpu"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        rowwise_linear(*arguments)
