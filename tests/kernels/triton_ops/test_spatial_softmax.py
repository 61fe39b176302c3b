import math

import pytest
import torch

from worldenv.kernels.spatial_softmax import TILE, spatial_softmax
from worldenv.ops.spatial_softmax import spatial_softmax_reference

SHAPES = [(1, 2, 2, 1), (2, 5, 7, 24), (3, 3, 9, 17), (2, 37, 9, 16), (1, 33, 31, 33)]  # the last two: several tiles


def reference(rows):
    """In float32, rounded once to the dtype of the rows."""
    return spatial_softmax_reference(rows.float().permute(0, 3, 1, 2)).to(rows.dtype)


@pytest.mark.parametrize(("b", "height", "width", "c"), SHAPES)
def test_face_equals_the_reference(draw, assert_same, dtype, b, height, width, c):
    rows = draw(b, height, width, c, dtype=dtype) * 4
    assert_same(spatial_softmax(rows), reference(rows))


@pytest.mark.parametrize("first", [True, False])
def test_greatest_value_is_found_in_any_tile(draw, first):
    rows = draw(1, 33, 31, 16)
    rows[0, 0 if first else 32, 4, 3] = 80.0
    assert rows.numel() > 3 * TILE
    x, y, peak = spatial_softmax(rows)[0, 3::16].tolist()
    assert (x, y, peak) == pytest.approx((2 * 4 / 30 - 1, -1 if first else 1, 80), abs=1e-4)


@pytest.mark.parametrize("value", [1e37, 3e4, -3e4, -1e37])
def test_flat_channel_looks_at_the_middle_and_large_values_do_no_harm(device, value):
    x, y, peak = spatial_softmax(torch.full((1, 4, 7, 1), value, device=device))[0].tolist()
    assert (x, y) == pytest.approx((0, 0), abs=1e-6) and peak == pytest.approx(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_spoils_its_channel_and_no_other(draw, value):
    rows = draw(2, 33, 31, 20)
    clean = spatial_softmax(rows)
    rows[1, 2, 3, 5] = value
    found, expected = spatial_softmax(rows), reference(rows)
    assert torch.equal(found.isnan(), expected.isnan()) and found[1, 45].isnan()
    found[1, 5::20] = clean[1, 5::20]
    assert torch.equal(found, clean)


def test_place_without_any_weight_is_passed_over_and_a_channel_without_any_is_not_a_number(draw):
    rows = draw(1, 33, 31, 16)
    rows[0, :16, :, 2] = -math.inf  # the whole first tile
    rows[0, :, :, 7] = -math.inf
    found, expected = spatial_softmax(rows)[0], reference(rows)[0]
    torch.testing.assert_close(found[[2, 18]], expected[[2, 18]], rtol=1e-4, atol=1e-5)
    assert found[7::16].isnan().all()


def test_image_gives_the_same_alone_and_in_a_batch_and_strided_rows_are_read_right(draw):
    rows = draw(4, 9, 7, 20)
    together = spatial_softmax(rows)
    assert torch.equal(spatial_softmax(rows[2:3])[0], together[2])
    assert torch.equal(spatial_softmax(rows.transpose(1, 2).contiguous().transpose(1, 2)), together)


def test_no_image_gives_nothing(draw):
    assert spatial_softmax(draw(0, 4, 4, 8)).shape == (0, 24)
    assert spatial_softmax(draw(2, 4, 4, 0)).shape == (2, 0)
