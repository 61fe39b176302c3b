import pytest
import torch

from worldenv.kernels.adaln import adaln, adaln_backward
from worldenv.ops.adaln import adaln_backward_reference, adaln_reference

SHAPES = pytest.mark.parametrize(("b", "n", "d"), [(1, 1, 2), (3, 7, 17), (2, 70, 160), (2, 33, 1000), (1, 3, 1536)])


def inputs(draw, b, n, d, dtype, branch=True):
    x, more = draw(b, n, d, dtype=dtype) + 3, draw(b, n, d, dtype=dtype)
    scale, shift, gate = draw(3, b, d, dtype=dtype)
    return x, scale / 4, shift, *((more, gate) if branch else (None, None))


def exact(function, *tensors, **options):
    """The reference in float32, rounded once to the dtype of the first tensor."""
    out = function(*(None if t is None else t.float() for t in tensors), **options)
    return [t.to(tensors[0].dtype) for t in out]


@SHAPES
@pytest.mark.parametrize("branch", [True, False])
def test_face_equals_the_reference(draw, assert_same, dtype, b, n, d, branch):
    arguments = inputs(draw, b, n, d, dtype, branch)
    total, y = adaln(*arguments)
    expected = exact(adaln_reference, *arguments)
    assert_same(y, expected[1])
    if branch:
        assert_same(total, expected[0])
    else:
        assert not total.numel()


@SHAPES
@pytest.mark.parametrize("branch", [True, False])
def test_gradient_equals_that_of_the_reference(draw, dtype, b, n, d, branch):
    total, scale, _, more, gate = inputs(draw, b, n, d, dtype, branch)
    arguments = (*draw(2, b, n, d, dtype=dtype), total, scale, more, gate)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for actual, expected in zip(adaln_backward(*arguments), exact(adaln_backward_reference, *arguments), strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_gradient_is_the_same_each_time(draw):
    arguments = (*draw(3, 2, 70, 33), draw(2, 33), draw(2, 70, 33), draw(2, 33))
    for one, other in zip(adaln_backward(*arguments), adaln_backward(*arguments), strict=True):
        assert torch.equal(one, other)


def test_number_that_is_not_finite_spoils_its_row_and_no_other(draw):
    arguments = inputs(draw, 2, 5, 24, torch.float32)
    clean = adaln(*arguments)[1]
    arguments[0][1, 3, 7] = float("nan")
    y = adaln(*arguments)[1]
    assert y[1, 3].isnan().all()
    y[1, 3] = clean[1, 3]
    assert torch.equal(y, clean)


def test_no_row_gives_nothing_and_rows_that_are_too_long_are_refused(draw):
    assert adaln(*inputs(draw, 0, 4, 8, torch.float32))[1].shape == (0, 4, 8)
    grads = adaln_backward(*draw(3, 2, 0, 8), draw(2, 8), None, None)
    assert [tuple(t.shape) for t in grads] == [(2, 0, 8), (2, 8), (2, 8), (0, 0, 8), (0, 8)] and not grads[1].any()
    with pytest.raises(ValueError, match="x has rows of 9000 numbers; .* at most 8192"):
        adaln(*inputs(draw, 1, 1, 9000, torch.float32))
