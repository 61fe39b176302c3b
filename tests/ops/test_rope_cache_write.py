import copy

import pytest
import torch

import worldenv.ops.rope_cache_write as module
from worldenv import ops
from worldenv.ops.rope_cache_write import rope_cache_write, rope_cache_write_reference

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of numbers up to 6, angles up to 40
FACES = pytest.mark.parametrize("face", [rope_cache_write, rope_cache_write_reference])
DTYPES = pytest.mark.parametrize("dtype", ops.FLOATS)
LEVELS = pytest.mark.parametrize("levels", [False, True])
SHAPES = pytest.mark.parametrize(
    ("b", "m", "h", "g", "d", "c", "tokens"),
    [
        (0, 4, 2, 1, 16, 8, 2),
        (1, 1, 1, 1, 2, 1, 1),
        (2, 6, 4, 2, 24, 7, 3),
        (3, 63, 6, 3, 16, 100, 9),
        (2, 64, 6, 2, 128, 64, 64),
        (1, 4, 3, 1, 42, 9, 2),
    ],
)


def inputs(b=2, m=6, h=4, g=2, d=24, c=10, tokens=3, dtype=torch.float32, levels=False, seed=0):
    draw = torch.Generator().manual_seed(seed)
    qkv = torch.randn(b, m, (h + 2 * g) * d, generator=draw).to(dtype)
    gains = (1 + torch.randn(d, generator=draw) / 4 for _ in range(2))
    frame, place = (torch.randint(end, (b,), generator=draw, dtype=torch.int32) for end in (30, c))
    time_angle, space_angle = torch.rand(d // 2, generator=draw), 6 * torch.rand(tokens, d // 2, generator=draw)
    rings = (torch.full((b, g, c, d), 7, dtype=torch.int8 if levels else dtype) for _ in range(2))
    scales = (torch.full((b, g, c), 7.0) for _ in range(2 * levels))
    return [qkv, *gains, frame, place, time_angle, space_angle, *rings, *scales]


def run(face, arguments):
    """The queries and what the rings hold then; the arguments stay as they are."""
    arguments = copy.deepcopy(arguments)
    return face(*arguments), *arguments[7:]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        if one.dtype == torch.int8:
            assert ((one.int() - other.int()).abs() <= 1).all() and (one == other).float().mean() > 0.98
        else:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[other.dtype])


@SHAPES
@DTYPES
@LEVELS
def test_compiled_face_equals_the_reference(b, m, h, g, d, c, tokens, dtype, levels):
    arguments = inputs(b, m, h, g, d, c, tokens, dtype, levels)
    actual, expected = run(rope_cache_write, arguments), run(rope_cache_write_reference, arguments)
    if b:
        assert_same(actual, expected)
    assert actual[0].shape == (b, m, h, d)


@pytest.mark.parametrize("level", ["plain", "avx2"])
@DTYPES
def test_lower_instruction_sets_give_the_same_queries(level, dtype, at_level):
    arguments = inputs(d=42, dtype=dtype)
    found = at_level(level, "rope_cache_write", *arguments)
    assert_same([found], run(rope_cache_write_reference, arguments)[:1])


@FACES
def test_places_that_no_token_takes_stay_as_they_are(face):
    arguments = inputs()
    arguments[4] = torch.tensor([7, 0], dtype=torch.int32)  # 7, 8, 9, 0, 1, 2 and 0 .. 5
    _, keys, values = run(face, arguments)
    for ring in (keys, values):
        assert (ring[0, :, 3:7] == 7).all() and (ring[1, :, 6:] == 7).all()
        assert (ring != 7).flatten(3).any(3).sum() == 2 * 2 * 6


@FACES
@LEVELS
def test_token_is_written_at_its_place_modulo_the_ring(face, levels):
    arguments = inputs(levels=levels)
    arguments[4] = torch.tensor([0, 0], dtype=torch.int32)
    _, *first = run(face, arguments)
    arguments[4] = torch.tensor([8, 23], dtype=torch.int32)
    _, *moved = run(face, arguments)
    for one, other in zip(first, moved, strict=True):
        assert torch.equal(one[0].roll(8, 1), other[0]) and torch.equal(one[1].roll(3, 1), other[1])


@FACES
def test_values_are_those_of_the_projection(face):
    arguments = inputs()
    arguments[4].zero_()
    _, _, values = run(face, arguments)
    expected = arguments[0][..., -2 * 24 :].unflatten(2, (2, 24)).transpose(1, 2)
    assert torch.equal(values[:, :, :6], expected)


@FACES
def test_scores_depend_on_the_distance_in_time_alone(face):
    arguments = inputs()
    arguments[4].zero_()
    scores = []
    for frame in (0, 17):
        arguments[3] = torch.full((2,), frame, dtype=torch.int32)
        query, keys, _ = run(face, arguments)
        scores.append(query[:, :, 0] @ keys[:, 0, :6].transpose(1, 2))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)


@FACES
def test_queries_are_normalised_and_only_turned(face):
    arguments = inputs()
    arguments[1].fill_(1.0)
    query, *_ = run(face, arguments)
    torch.testing.assert_close(query.square().mean(-1), torch.ones(2, 6, 4), rtol=0, atol=1e-4)
    arguments[5].zero_(), arguments[6].zero_()
    still, *_ = run(face, arguments)
    heads = arguments[0][..., : 4 * 24].unflatten(2, (4, 24))
    torch.testing.assert_close(still, heads / heads.square().mean(-1, keepdim=True).sqrt(), rtol=0, atol=1e-5)


@FACES
@DTYPES
def test_levels_are_within_half_a_step_of_the_number(face, dtype):
    arguments = inputs(dtype=dtype, levels=True)
    arguments[4].zero_()
    _, keys, values, key_scale, value_scale = run(face, arguments)
    value = arguments[0][..., -2 * 24 :].float().unflatten(2, (2, 24)).transpose(1, 2)
    error = values[:, :, :6] * value_scale[:, :, :6, None] - value
    assert (error.abs() <= 0.501 * value_scale[:, :, :6, None]).all()
    for ring in (keys, values):
        assert (ring[:, :, :6].abs().amax(-1) == 127).all()
    assert key_scale[:, :, :6].gt(0).all()


@FACES
def test_token_of_zeros_is_kept_and_one_that_is_not_finite_is_not_hidden(face):
    arguments = inputs(levels=True)
    arguments[4].zero_()
    arguments[0][0, 0] = 0.0
    arguments[0][0, 1, -5] = torch.nan
    _, keys, values, _, value_scale = run(face, arguments)
    assert not keys[0, :, 0].any() and not values[0, :, 0].any() and (value_scale[0, :, 0] > 0).all()
    assert value_scale[0, 1, 1].isnan() and value_scale[0, 0, 1].isfinite()


@FACES
def test_layer_of_the_slots_is_written_where_it_lies(face):
    arguments = inputs()
    query, keys, values = run(face, arguments)
    slots = torch.full((2, 3, 2, 2, 10, 24), 7.0)  # [B, layers, K / V, G, C, D]
    assert torch.equal(face(*arguments[:7], slots[:, 1, 0], slots[:, 1, 1]), query)
    assert torch.equal(slots[:, 1, 0], keys) and torch.equal(slots[:, 1, 1], values)
    assert (slots[:, [0, 2]] == 7).all()


def test_an_episode_writes_the_same_alone_and_in_a_batch():
    arguments = inputs(b=7, levels=True)
    alone = [part[4:5] if len(part) == 7 else part for part in arguments]
    for one, all_of_them in zip(run(rope_cache_write, alone), run(rope_cache_write, arguments), strict=True):
        assert torch.equal(one[0], all_of_them[4])


def test_operator_passes_opcheck():
    for levels in (False, True):
        torch.library.opcheck(torch.ops.worldenv.rope_cache_write.default, tuple(inputs(levels=levels)))


def test_operator_is_traced_without_a_graph_break():
    def step(qkv, *others):
        return rope_cache_write(qkv * 1.0, *others) + 1.0

    arguments = inputs(levels=True)
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    for one, other in zip(run(traced, arguments), run(step, arguments), strict=True):
        torch.testing.assert_close(one, other)


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "rope_cache_write_reference", lambda *arguments: "reference ran")
    assert rope_cache_write(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(2, 192), r"qkv has shape \[2, 192\], keys .*; they should be \[B, M, \(H \+ 2 G\) D\]"),
        (0, torch.zeros(2, 6, 100), r"qkv has 100 numbers a token; with 2 key heads of 24 it should be"),
        (0, torch.zeros(2, 5, 192), "qkv has 5 tokens; it should be a multiple of the 3 of a frame, and at most 10"),
        (0, torch.zeros(2, 12, 192), "qkv has 12 tokens; it should be a multiple of the 3 of a frame, and at most 10"),
        (0, torch.zeros(2, 6, 192).double(), "qkv is torch.float64; it should be torch.float32 or torch.bfloat16"),
        (1, torch.zeros(23), r"query_gain has shape \[23\]; it should be \[24\]"),
        (3, torch.zeros(2), r"frame is torch.float32 \[2\]; it should be torch.int32 \[2\]"),
        (5, torch.zeros(24), r"time_angle has shape \[24\]; it should be \[12\]"),
        (7, torch.zeros(2, 2, 10, 24).half(), "keys is torch.float16; it should be torch.float32"),
        (8, torch.zeros(2, 2, 9, 24), r"values has shape \[2, 2, 9, 24\]; it should be \[2, 2, 10, 24\]"),
        (9, torch.zeros(2, 2, 10), "key_scale and value_scale are given with int8 keys and values, and only then"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = [*inputs(), None, None]
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        rope_cache_write(*arguments)


def test_negative_place_is_refused():
    arguments = inputs()
    arguments[4] -= 20
    with pytest.raises(RuntimeError, match="place should not be negative"):
        rope_cache_write(*arguments)
