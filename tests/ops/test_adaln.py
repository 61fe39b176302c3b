import pytest
import torch

import worldenv.ops.adaln as module
from worldenv import ops
from worldenv.ops.adaln import adaln, adaln_backward_reference, adaln_reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # an ulp of the numbers in 16 bits
DTYPES = pytest.mark.parametrize("dtype", ops.FLOATS)
SHAPES = pytest.mark.parametrize(("b", "n", "d"), [(0, 4, 8), (1, 1, 2), (3, 7, 17), (2, 64, 160), (5, 3, 1000)])


def inputs(b=2, n=5, d=24, branch=True, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(b, n, d), (b, d), (b, d), (b, n, d), (b, d)]
    x, scale, shift, *rest = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return x + 3, scale / 4, shift, *(rest if branch else (None, None))


def assert_same(actual, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@SHAPES
@pytest.mark.parametrize("branch", [True, False])
@DTYPES
def test_compiled_face_equals_the_reference(b, n, d, branch, dtype):
    arguments = inputs(b, n, d, branch, dtype)
    for actual, expected in zip(adaln(*arguments), adaln_reference(*arguments), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("level", ["plain", "avx2"])
@DTYPES
def test_lower_instruction_sets_give_the_same(level, dtype, at_level):
    arguments = inputs(d=42, dtype=dtype)
    for actual, expected in zip(at_level(level, "adaln", *arguments), adaln_reference(*arguments), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("face", [adaln, adaln_reference])
def test_rows_have_mean_0_and_variance_1_before_the_condition(face):
    x, _, _, branch, gate = inputs()
    _, y = face(x, torch.zeros(2, 24), torch.zeros(2, 24), branch, gate)
    torch.testing.assert_close(y.mean(2), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(2, correction=0), torch.ones(2, 5), rtol=0, atol=1e-3)


def test_large_mean_costs_no_precision():
    x, scale, shift, *_ = inputs()
    far = adaln(x + 1000, scale, shift)[1]
    torch.testing.assert_close(far, adaln(x, scale, shift)[1], rtol=0, atol=1e-3)


def test_without_a_branch_x_is_given_back_as_it_is():
    x, scale, shift, *_ = inputs(branch=False)
    assert adaln(x, scale, shift)[0] is x


def test_a_number_that_is_not_finite_spoils_its_row_and_no_other():
    arguments = inputs()
    clean = adaln(*arguments)[1]
    arguments[0][1, 3, 7] = float("nan")
    y = adaln(*arguments)[1]
    assert y[1, 3].isnan().all()
    y[1, 3] = clean[1, 3]
    assert torch.equal(y, clean)


def test_an_episode_gives_the_same_alone_and_in_a_batch():
    arguments = inputs(b=7)
    together, alone = adaln(*arguments), adaln(*(part[4:5] for part in arguments))
    assert torch.equal(alone[0][0], together[0][4]) and torch.equal(alone[1][0], together[1][4])


@SHAPES
@pytest.mark.parametrize("branch", [True, False])
def test_gradient_equals_that_of_the_reference(b, n, d, branch):
    results = []
    for face in (adaln, adaln_reference):
        leaves = [t.clone().requires_grad_() for t in inputs(b, n, d, branch) if t is not None]
        x, y = face(*leaves)
        (x.sin().sum() + y.cos().sum()).backward()
        results.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@SHAPES
@pytest.mark.parametrize("branch", [True, False])
@DTYPES
def test_compiled_gradient_equals_its_reference(b, n, d, branch, dtype):
    total, scale, _, branch, gate = inputs(b, n, d, branch, dtype)
    up = [t.to(dtype) for t in torch.randn(2, b, n, d, generator=torch.Generator().manual_seed(1))]
    arguments = *up, total, scale, branch, gate
    found, expected = torch.ops.worldenv.adaln_backward(*arguments), adaln_backward_reference(*arguments)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_result_is_rounded_once(dtype):
    arguments = inputs(dtype=dtype)
    found, exact = adaln(*arguments), adaln_reference(*(t.float() for t in arguments))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype and (one == other.to(dtype)).float().mean() > 0.98


@DTYPES
def test_gradient_has_the_dtype_of_what_it_is_for(dtype):
    leaves = [t.requires_grad_() for t in inputs(dtype=dtype)]
    adaln(*leaves)[1].square().sum().backward()
    assert all(leaf.grad.dtype == dtype and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("branch", [True, False])
def test_reference_of_the_gradient_is_what_autograd_finds(branch):
    x, scale, shift, more, gate = (None if t is None else t.double().requires_grad_() for t in inputs(branch=branch))
    leaves = [t for t in (x, scale, shift, more, gate) if t is not None]
    total, y = adaln_reference(x, scale, shift, more, gate)
    up = torch.randn_like(total), torch.randn_like(y)
    expected = torch.autograd.grad((total, y), leaves, up)
    actual = adaln_backward_reference(*up, total, scale, more, gate)
    for one, other in zip(actual, expected, strict=False):
        torch.testing.assert_close(one, other)


def test_part_of_the_inputs_may_want_a_gradient():
    arguments = inputs()
    arguments[4].requires_grad_()
    adaln(*arguments)[1].square().sum().backward()
    assert arguments[4].grad.any()


def test_operator_passes_opcheck():
    arguments = [t.requires_grad_() for t in inputs(b=1)]
    torch.library.opcheck(torch.ops.worldenv.adaln.default, arguments)
    torch.library.opcheck(torch.ops.worldenv.adaln.default, inputs(branch=False))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs()

    def step(x, *others):
        x, y = adaln(x * 1.0, *others)
        return x + y

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "adaln_reference", lambda *arguments: "reference ran")
    assert adaln(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 24), r"x has shape \[2, 24\]; it should be \[B, N, D\]"),
        (0, torch.zeros(2, 5, 24).double(), "x is torch.float64; it should be torch.float32 or torch.bfloat16 or"),
        (1, torch.zeros(2, 24).half(), "scale is torch.float16; it should be torch.float32"),
        (1, torch.zeros(2, 23), r"scale has shape \[2, 23\]; it should be \[2, 24\]"),
        (2, torch.zeros(2, 24, device="meta"), r"shift is on meta; it should be on cpu"),
        (3, None, "branch and gate are given together or not at all"),
        (3, torch.zeros(2, 4, 24), r"branch has shape \[2, 4, 24\]; it should be \[2, 5, 24\]"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        adaln(*arguments)
