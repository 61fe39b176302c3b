"""The CUDA kernel of rope_cache_write, run on the emulator."""

import pytest
import torch

from worldenv.ops.rope_cache_write import rope_cache_write_reference

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def inputs(b=2, m=6, tokens=3, h=4, g=2, c=11, d=64, dtype=torch.bfloat16, int8=False, seed=0):
    """Arguments of the op; the rings are one of three layers of the slots."""
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=draw)  # noqa: E731
    ring = lambda *shape: torch.randn(b, 3, *shape, generator=draw)  # noqa: E731
    keys, values = ((8 * ring(g, c, d)).to(torch.int8 if int8 else dtype)[:, 1] for _ in range(2))
    scales = [ring(g, c)[:, 1] for _ in range(2)] if int8 else [None, None]
    frame = torch.randint(0, 3000, (b,), generator=draw, dtype=torch.int32)
    place = torch.randint(0, c, (b,), generator=draw, dtype=torch.int32)
    place[-1] = c - 1  # wraps
    return [
        random(b, m, (h + 2 * g) * d).to(dtype),
        1 + random(d) / 8,
        1 + random(d) / 8,
        frame,
        place,
        random(d // 2).abs(),
        random(tokens, d // 2),
        keys,
        values,
        *scales,
    ]


def copied(arguments):
    """The same with rings of its own, as strided as they were."""
    return [
        t if i < 7 or t is None else t.new_empty(2 * t.stride(0) * len(t)).as_strided(t.shape, t.stride()).copy_(t)
        for i, t in enumerate(arguments)
    ]


def run(emulated, arguments):
    qkv, *_, space_angle, keys, values, key_scale, value_scale = arguments
    (b, m, width), (_, g, c, d) = qkv.shape, keys.shape
    h = width // d - 2 * g
    query = torch.full((b, m, h, d), float("nan"), dtype=qkv.dtype)
    strides = [0 if t is None else t.stride(0) for t in (keys, values, key_scale, value_scale)]
    numbers = [*strides, b, m, h, g, c, len(space_angle)]
    emulated("rope_cache_write", qkv.dtype, key_scale is not None, d, [*arguments, query], numbers)
    return query


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"b": 1, "m": 1, "tokens": 1, "h": 1, "g": 1, "c": 1},
        {"b": 3, "m": 7, "tokens": 7, "h": 9, "g": 3, "c": 7, "d": 128},
        {"m": 4, "tokens": 2, "h": 2, "g": 1, "d": 128},
    ],
)
def test_kernel_writes_what_the_reference_writes(emulated, dtype, int8, shape):
    arguments = inputs(dtype=dtype, int8=int8, **shape)
    expected = copied(arguments)
    query = run(emulated, arguments)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(query, rope_cache_write_reference(*expected), **tolerance)
    for actual, wanted in zip(arguments[7:], expected[7:], strict=True):
        if int8 and actual.dtype == torch.int8:  # a rounding may fall to the other side
            difference = (actual.int() - wanted.int()).abs()
            assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-2
        elif actual is not None:
            torch.testing.assert_close(actual, wanted, **tolerance)


def test_number_that_is_not_finite_stays_in_its_token(emulated):
    arguments = inputs(int8=True)
    clean = copied(arguments)
    run(emulated, clean)
    arguments[0][1, 2, -1] = float("nan")  # in the value of the last head
    run(emulated, arguments)
    spoiled = arguments[10].isnan()
    assert spoiled.sum() == 1 and spoiled[1, 1, (arguments[4][1] + 2) % 11]
    assert torch.equal(arguments[10][~spoiled], clean[10][~spoiled])


@pytest.mark.parametrize(
    ("old", "new"),
    [("m) % p.capacity", "m + 1) % p.capacity"), ("b * turn.a[i] + a * turn.b[i]", "b * turn.a[i] - a * turn.b[i]")],
)
def test_seeded_defect_is_found(emulate, old, new):
    with pytest.raises(AssertionError):
        test_kernel_writes_what_the_reference_writes(emulate(old, new), torch.bfloat16, False, {"c": 13})
