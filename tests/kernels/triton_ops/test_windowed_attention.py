import pytest
import torch

from worldenv.kernels.windowed_attention import windowed_attention
from worldenv.ops.windowed_attention import windowed_attention_reference


def inputs(draw, b, m, h, g, c, d, dtype, lengths, int8=False):
    """A layer of rings of three layers; what lies behind an episode's length is not a number."""
    query, rings = draw(b, m, h, d, dtype=dtype), draw(2, b, 3, g, c, d, dtype=dtype)
    length = torch.tensor(lengths, dtype=torch.int32, device=query.device)
    unwritten = torch.arange(c, device=query.device) >= length[:, None]  # [B, C]
    scales = ()
    if int8:
        rings = (30 * rings).round().clamp(-127, 127).to(torch.int8)
        scales = tuple(draw(2, b, 3, g, c).abs().div(30)[:, :, 1])
        for scale in scales:
            scale.masked_fill_(unwritten[:, None], float("nan"))
    keys, values = rings[:, :, 1]
    if not int8:
        for ring in (keys, values):
            ring.masked_fill_(unwritten[:, None, :, None], float("nan"))
    return query, keys, values, length, *scales


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("b", "m", "h", "g", "c", "d", "lengths"),
    [
        (1, 1, 1, 1, 1, 2, [1]),
        (3, 5, 6, 2, 37, 17, [37, 0, 1]),
        (2, 16, 4, 4, 128, 32, [128, 64]),
        (2, 63, 3, 1, 130, 16, [129, 33]),
        (1, 48, 12, 2, 65, 128, [65]),
    ],
)
def test_face_equals_the_reference(draw, assert_same, dtype, int8, b, m, h, g, c, d, lengths):
    arguments = inputs(draw, b, m, h, g, c, d, dtype, lengths, int8)
    assert_same(windowed_attention(*arguments), windowed_attention_reference(*arguments))


def test_episode_without_a_token_gets_zeros(draw, dtype):
    assert not windowed_attention(*inputs(draw, 2, 4, 2, 1, 8, 16, dtype, [0, 0])).any()


def test_length_over_the_capacity_reads_nothing_behind_the_ring(draw):
    query, keys, values, length = inputs(draw, 1, 3, 2, 1, 8, 16, torch.float32, [8])
    assert torch.equal(
        windowed_attention(query, keys, values, length + 1000), windowed_attention(query, keys, values, length)
    )


def test_query_may_be_strided_and_no_query_at_all_is_none(draw, assert_same):
    query, *others = inputs(draw, 2, 8, 2, 1, 8, 16, torch.float32, [8, 3])
    assert_same(windowed_attention(query[:, ::2], *others), windowed_attention_reference(query[:, ::2], *others))
    assert windowed_attention(query[:, :0], *others).shape == (2, 0, 2, 16)


def test_number_that_is_not_finite_stays_in_its_episode(draw):
    arguments = inputs(draw, 2, 3, 2, 1, 8, 16, torch.float32, [8, 8])
    clean = windowed_attention(*arguments)
    arguments[1][0, 0, 5, 3] = float("nan")
    out = windowed_attention(*arguments)
    assert out[0].isnan().all() and torch.equal(out[1], clean[1])


def test_heads_that_are_too_wide_are_refused(draw):
    with pytest.raises(ValueError, match="query has heads of 130 numbers; .* at most 128"):
        windowed_attention(*inputs(draw, 1, 1, 1, 1, 1, 130, torch.float32, [1]))
