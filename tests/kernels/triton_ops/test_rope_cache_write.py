import pytest
import torch

from worldenv.kernels.rope_cache_write import rope_cache_write
from worldenv.ops.rope_cache_write import rope_cache_write_reference


def inputs(draw, b, frames, tokens, h, g, c, d, dtype, int8=False):
    """The arguments; the rings are the middle one of three layers."""
    qkv = draw(b, frames * tokens, (h + 2 * g) * d, dtype=dtype)
    gains, angles = draw(2, d).abs() + 0.5, (draw(d // 2), draw(tokens, d // 2))
    frame = torch.arange(b, dtype=torch.int32, device=qkv.device) * 7
    place = torch.arange(b, dtype=torch.int32, device=qkv.device) * (c - 1) + 3  # chunks go over the ring's end
    rings = torch.full((2, b, 3, g, c, d), 7.0, device=qkv.device).to(torch.int8 if int8 else dtype)
    scales = tuple(torch.full((2, b, 3, g, c), 7.0, device=qkv.device)[:, :, 1]) if int8 else ()
    return [qkv, *gains, frame, place, *angles, *rings[:, :, 1], *scales]


def both(arguments):
    """What face and reference give, and the rings and scales that each leaves."""
    mine, other = (arguments[:7] + [t.clone() for t in arguments[7:]] for _ in range(2))
    return (rope_cache_write(*mine), *mine[7:]), (rope_cache_write_reference(*other), *other[7:])


SHAPES = pytest.mark.parametrize(
    ("b", "frames", "tokens", "h", "g", "c", "d"),
    [(1, 1, 1, 1, 1, 1, 2), (3, 2, 3, 6, 2, 10, 22), (2, 1, 63, 3, 3, 64, 32), (2, 4, 4, 4, 1, 16, 128)],
)


@SHAPES
def test_face_equals_the_reference(draw, assert_same, dtype, b, frames, tokens, h, g, c, d):
    for actual, expected in zip(*both(inputs(draw, b, frames, tokens, h, g, c, d, dtype)), strict=True):
        assert_same(actual, expected)


@SHAPES
def test_levels_of_8_bits_are_at_most_one_off(draw, assert_same, dtype, b, frames, tokens, h, g, c, d):
    actual, expected = both(inputs(draw, b, frames, tokens, h, g, c, d, dtype, int8=True))
    for one, other in zip(actual, expected, strict=True):
        if one.dtype == torch.int8:
            assert (one.int() - other.int()).abs().max() <= 1
            assert (one == other).float().mean() > 0.99
        else:
            assert_same(one, other, torch.float32 if one.dtype == torch.float32 else None)


def test_places_that_the_chunk_does_not_reach_and_other_layers_stay_as_they_were(draw):
    arguments = inputs(draw, 2, 1, 3, 2, 1, 8, 16, torch.float32)
    keys = arguments[7]
    whole = torch.full((2, 3, 1, 8, 16), 7.0, device=keys.device)
    arguments[7] = whole[:, 1]
    rope_cache_write(*arguments)
    written = (whole != 7).any(-1).nonzero().tolist()
    assert written == [[0, 1, 0, 3], [0, 1, 0, 4], [0, 1, 0, 5], [1, 1, 0, 2], [1, 1, 0, 3], [1, 1, 0, 4]]


def test_number_that_is_not_finite_is_kept_by_the_scale(draw):
    arguments = inputs(draw, 1, 1, 2, 1, 1, 4, 8, torch.float32, int8=True)
    arguments[0][0, 1, [9, 20]] = float("nan")  # one number of the second token's key, one of its value
    rope_cache_write(*arguments)
    for scale in arguments[9:]:
        assert scale[0, 0, 3] > 0 and scale[0, 0, 0].isnan()  # at places 3 and 0 of 4


def test_token_of_zeros_has_a_scale(draw):
    arguments = inputs(draw, 1, 1, 1, 1, 1, 1, 8, torch.float32, int8=True)
    arguments[0].zero_()
    rope_cache_write(*arguments)
    assert not arguments[8].any() and arguments[10].item() == pytest.approx(1e-12)


def test_no_token_at_all_writes_nothing(draw):
    arguments = inputs(draw, 2, 1, 3, 2, 1, 8, 16, torch.float32)
    assert rope_cache_write(
        arguments[0][:0],
        *arguments[1:3],
        *(t[:0] for t in arguments[3:5]),
        *arguments[5:7],
        *(t[:0] for t in arguments[7:]),
    ).shape == (0, 3, 2, 16)
