import pytest
import torch

from worldenv.kernels.adagn import adagn
from worldenv.ops.adagn import adagn_reference

SHAPES = [  # B, H, W, C, groups
    (1, 1, 2, 1, 1),
    (3, 5, 7, 6, 3),
    (2, 3, 3, 17, 17),
    (2, 32, 31, 40, 8),
    (1, 9, 3, 130, 1),
    (2, 45, 33, 24, 3),  # two tiles; with groups of 8 channels a tile is 1,024 places
    (2, 439, 7, 16, 2),  # four, of which the last has one place
    (2, 241, 17, 8, 1),  # five, of which the last has one place: the moments have a kernel of their own
    (1, 61, 127, 5, 1),  # eight
]
SIZES = [(9, 7), (60, 63), (70, 60)]  # of one tile, four and five


def inputs(draw, b, height, width, c, groups, dtype=torch.float32, condition=True, activation="silu", mean=0.0):
    rows, pair = draw(b, height, width, c) + mean, (draw(b, 2 * c) / 4).to(dtype).chunk(2, 1)
    weight, bias = 1 + draw(c) / 4, draw(c) / 4
    rows, weight, bias = (t.to(dtype) for t in (rows, weight, bias))
    return rows, groups, weight, bias, *(pair if condition else (None, None)), activation, 1e-5


def reference(rows, *others, precision=torch.float32):
    """In `precision`, rounded once to the dtype of the rows."""
    others = [t.to(precision) if isinstance(t, torch.Tensor) else t for t in others]
    return adagn_reference(rows.to(precision).permute(0, 3, 1, 2), *others).permute(0, 2, 3, 1).to(rows.dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("condition", "activation"), [(True, "silu"), (False, "none"), (True, "relu")])
def test_face_equals_the_reference(draw, assert_same, dtype, shape, condition, activation):
    arguments = inputs(draw, *shape, dtype=dtype, condition=condition, activation=activation, mean=0.5)
    assert_same(adagn(*arguments), reference(*arguments))


@pytest.mark.parametrize("size", SIZES)
def test_large_mean_costs_no_precision(draw, size):
    far = inputs(draw, 1, *size, 16, 2, activation="none", mean=1000.0)
    near = (far[0] - 1000.0, *far[1:])
    exact = reference(*far, precision=torch.float64)
    torch.testing.assert_close(adagn(*far), exact, rtol=0.0, atol=1e-3)  # what float32 leaves of x itself
    torch.testing.assert_close(adagn(*far), adagn(*near), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_parts_of_a_group_with_means_of_their_own_are_merged_exactly(draw, assert_same, size):
    arguments = inputs(draw, 1, *size, 16, 2, activation="none")
    arguments[0].add_(torch.linspace(0, 30, size[0], device=arguments[0].device)[None, :, None, None])
    assert_same(adagn(*arguments), reference(*arguments, precision=torch.float64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_number_that_is_not_finite_spoils_its_group_and_no_other(draw, size, activation):
    arguments = inputs(draw, 2, *size, 16, 2, activation=activation)
    clean = adagn(*arguments)
    arguments[0][1, 5, 2, 3] = float("nan")
    y = adagn(*arguments)
    assert y[1, ..., :8].isnan().all()
    y[1, ..., :8] = clean[1, ..., :8]
    assert torch.equal(y, clean)


@pytest.mark.parametrize("size", SIZES)
def test_image_gives_the_same_alone_and_in_a_batch(draw, size):
    rows, groups, weight, bias, scale, shift, *others = inputs(draw, 2, *size, 16, 2)
    together = adagn(rows, groups, weight, bias, scale, shift, *others)
    assert torch.equal(adagn(rows[1:2], groups, weight, bias, scale[1:2], shift[1:2], *others)[0], together[1])


def test_condition_and_rows_are_read_right_however_they_lie(draw):
    rows, groups, weight, bias, scale, shift, *others = inputs(draw, 3, 9, 7, 16, 2)
    expected = adagn(rows, groups, weight, bias, scale, shift, *others)
    for scaled, shifted in (
        (scale.contiguous(), shift.contiguous()),
        (scale.contiguous(), shift),
        (scale.t().contiguous().t(), shift.t().contiguous().t()),
    ):
        assert torch.equal(adagn(rows, groups, weight, bias, scaled, shifted, *others), expected)
    turned = rows.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(adagn(turned, groups, weight, bias, scale, shift, *others), expected)
    one = scale[:1].expand(3, -1), shift[:1].expand(3, -1)
    assert torch.equal(
        adagn(rows, groups, weight, bias, *one, *others),
        adagn(rows, groups, weight, bias, *(t.contiguous() for t in one), *others),
    )


def test_no_image_gives_nothing_and_what_is_too_large_is_refused(draw):
    assert adagn(*inputs(draw, 0, 4, 4, 8, 2)).shape == (0, 4, 4, 8)
    assert adagn(*inputs(draw, 2, 0, 4, 8, 2)).shape == (2, 0, 4, 8)
    with pytest.raises(ValueError, match="x has groups of 8193 channels; .* at most 8192"):
        adagn(*inputs(draw, 1, 1, 2, 8193, 1))
    rows, *others = inputs(draw, 1, 1, 1, 8, 2)
    with pytest.raises(ValueError, match="x has images of 2147483648 numbers; .* at most 2147483647"):
        adagn(rows.expand(1, 2**14, 2**14, 8), *others)
