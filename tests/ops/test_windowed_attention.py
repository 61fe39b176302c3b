import pytest
import torch
from torch.nn import functional as F

import worldenv.ops.windowed_attention as module
from worldenv import ops
from worldenv.ops.windowed_attention import windowed_attention, windowed_attention_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # of means of values around 1
FACES = pytest.mark.parametrize("face", [windowed_attention, windowed_attention_reference])
DTYPES = pytest.mark.parametrize("dtype", ops.FLOATS)
SHAPES = pytest.mark.parametrize(
    ("b", "m", "h", "g", "c", "d"),
    [
        (0, 3, 2, 1, 5, 16),
        (2, 0, 2, 1, 5, 16),
        (1, 1, 1, 1, 1, 16),
        (2, 3, 4, 2, 7, 24),
        (3, 63, 6, 3, 130, 16),
        (2, 64, 6, 2, 65, 128),
        (1, 5, 3, 1, 200, 23),
    ],
)


def inputs(b=2, m=5, h=4, g=2, c=19, d=24, dtype=torch.float32, levels=False, seed=0):
    """Arguments whose unwritten places hold NaN, or the largest level with a scale that is NaN."""
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(b, m, h, d, generator=draw).to(dtype)
    length = torch.randint(c + 1, (b,), generator=draw, dtype=torch.int32)
    length[:1] = c
    unwritten = (torch.arange(c) >= length[:, None])[:, None]  # [B, 1, C]
    rings, scales = [], []
    for _ in range(2):
        ring = torch.randn(b, g, c, d, generator=draw)
        if levels:
            scales.append((ring.abs().amax(-1) / 127).masked_fill(unwritten, torch.nan))
            ring = (127 * ring / ring.abs().amax(-1, keepdim=True)).round().to(torch.int8)
            rings.append(ring.masked_fill(unwritten[..., None], 127))
        else:
            rings.append(ring.masked_fill(unwritten[..., None], torch.nan).to(dtype))
    return query, *rings, length, *scales


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[expected.dtype])


@SHAPES
@DTYPES
@pytest.mark.parametrize("levels", [False, True])
def test_compiled_face_equals_the_reference_and_reads_nothing_unwritten(b, m, h, g, c, d, dtype, levels):
    arguments = inputs(b, m, h, g, c, d, dtype, levels)
    assert_same(windowed_attention(*arguments), windowed_attention_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, False), (torch.float16, False), (torch.bfloat16, True)])
def test_lower_instruction_sets_give_the_same(level, dtype, levels, at_level):
    arguments = inputs(b=3, m=7, d=42, dtype=dtype, levels=levels)
    expected = windowed_attention_reference(*arguments)
    assert_same(at_level(level, "windowed_attention", *arguments), expected)


@DTYPES
@pytest.mark.parametrize("levels", [False, True])
def test_reference_equals_attention_written_out_in_float64(dtype, levels):
    query, keys, values, length, *scales = inputs(dtype=dtype, levels=levels)
    if levels:
        keys, values = (ring * scale[..., None] for ring, scale in zip((keys, values), scales, strict=True))
    expected = torch.zeros_like(query, dtype=torch.float64)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        key, value = (ring[b, h // 2, : length[b]].double() for ring in (keys, values))
        expected[b, :, h] = (query[b, :, h].double() @ key.T / 24**0.5).softmax(-1) @ value
    actual = windowed_attention_reference(*inputs(dtype=dtype, levels=levels))
    assert_same(actual, expected.to(dtype))


@FACES
def test_batch_of_a_layer_of_the_slots_is_read_where_it_lies(face):
    query, keys, values, length = inputs(b=3)
    slots = torch.stack([keys, values], dim=1).repeat(1, 2, 1, 1, 1).contiguous()  # [B, layers and K / V, G, C, D]
    assert not slots[:, 2].is_contiguous()
    assert torch.equal(face(query, slots[:, 2], slots[:, 3], length), face(query, keys, values, length))


def test_query_may_be_strided():
    query, *rest = inputs()
    strided = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(windowed_attention(strided, *rest), windowed_attention(query, *rest))


@FACES
def test_empty_ring_gives_zeros(face):
    query, keys, values, length = inputs()
    out = face(query, keys, values, torch.tensor([0, 4], dtype=torch.int32))
    assert not out[0].any() and out[1].all()


@FACES
@pytest.mark.parametrize("levels", [False, True])
def test_one_key_gives_its_value(face, levels):
    query, keys, values, _, *scales = inputs(levels=levels)
    out = face(query, keys, values, torch.ones(2, dtype=torch.int32), *scales)
    value = values[:, :, 0] * (scales[1][:, :, :1] if levels else 1.0)
    assert_same(out, value.repeat_interleave(2, 1)[:, None].expand_as(out).float())


@FACES
def test_equal_values_are_given_back(face):
    query, keys, values, length = inputs()
    out = face(query, keys, torch.full_like(values, 1.5), length)
    torch.testing.assert_close(out[0], torch.full_like(out[0], 1.5), rtol=1e-6, atol=0)


@FACES
def test_order_of_the_ring_does_not_matter(face):
    query, keys, values, _ = inputs(c=150)
    length = torch.full((2,), 150, dtype=torch.int32)
    keys, values = (ring[:1].nan_to_num().repeat(2, 1, 1, 1) for ring in (keys, values))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    assert_same(face(query, keys[:, :, order], values[:, :, order], length), face(query, keys, values, length))


@FACES
def test_far_scores_neither_overflow_nor_vanish(face):
    query, keys, values, length = inputs(c=150)
    out = face(query * 1000, keys, values, length)
    expected = F.one_hot((query * 1000)[0, 0, 0].double().matmul(keys[0, 0].double().T).argmax(), 150)
    assert out.isfinite().all()
    assert_same(out[0, 0, 0], expected.float() @ values[0, 0])


def test_an_episode_gives_the_same_alone_and_in_a_batch():
    arguments = inputs(b=7, m=63, c=90)
    alone = windowed_attention(*(part[4:5] for part in arguments))
    assert torch.equal(alone[0], windowed_attention(*arguments)[4])


def test_a_query_that_is_not_a_number_spoils_its_row_and_no_other():
    query, *ring = inputs()
    expected = windowed_attention(query, *ring)
    query[0, 1, 2, 3] = torch.nan
    out = windowed_attention(query, *ring)
    assert out[0, 1, 2].isnan().all()
    out[0, 1, 2] = expected[0, 1, 2]
    assert torch.equal(out, expected)


def test_operator_passes_opcheck():
    for levels in (False, True):
        torch.library.opcheck(torch.ops.worldenv.windowed_attention.default, inputs(levels=levels))


def test_operator_is_traced_without_a_graph_break():
    def step(query, *ring):
        return windowed_attention(query * 1.0, *ring) + 1.0

    arguments = inputs(levels=True)
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*arguments), step(*arguments))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "windowed_attention_reference", lambda *arguments: "reference ran")
    assert windowed_attention(*inputs()) == "reference ran"


RING = torch.zeros(2, 2, 19, 24)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 5, 24), r"query has shape \[2, 5, 24\] and keys \[2, 2, 19, 24\]; they should be \[B, M"),
        (0, torch.zeros(2, 5, 4, 24).double(), "query is torch.float64; it should be torch.float32 or torch.bfloat16"),
        (0, torch.zeros(2, 5, 3, 24), "query has 3 heads and keys 2; the former should be a multiple"),
        (1, RING.half(), "keys is torch.float16; it should be torch.float32"),
        (2, RING[:, :, :18], r"values has shape \[2, 2, 18, 24\]; it should be \[2, 2, 19, 24\]"),
        (2, RING.transpose(1, 2).contiguous().transpose(1, 2), "values of an episode is not contiguous"),
        (2, RING.to("meta"), "values is on meta; it should be on cpu"),
        (3, torch.zeros(2), r"length is torch.float32 \[2\] on cpu; it should be torch.int32 \[2\]"),
        (4, torch.zeros(2, 2, 19), "key_scale and value_scale are given with int8 keys and values, and only then"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = [*inputs(), None, None]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        windowed_attention(*arguments)


def test_scales_are_refused_where_they_are_another_size():
    *arguments, value_scale = inputs(levels=True)
    with pytest.raises(ValueError, match=r"value_scale has shape \[2, 2, 18\]; it should be \[2, 2, 19\]"):
        windowed_attention(*arguments, value_scale[:, :, :18])


def test_length_beyond_the_ring_is_refused():
    query, keys, values, length = inputs()
    with pytest.raises(RuntimeError, match=r"length should lie in \[0, C\]"):
        windowed_attention(query, keys, values, length + 1)
