"""The CUDA kernels of windowed_attention, run on the emulator."""

from types import SimpleNamespace

import pytest
import torch

from worldenv import ops
from worldenv.ops.windowed_attention import windowed_attention_reference

# Of weights that are rounded to the type of the values before they are multiplied.
TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
KERNELS = ["windowed_attention", "windowed_attention_hopper"]


def inputs(lengths=(70,), m=5, h=4, g=2, c=150, d=64, dtype=torch.bfloat16, int8=False, seed=0):
    """Arguments of the op, the rings strided over the batch; what lies beyond an episode's length is not a number."""
    draw = torch.Generator().manual_seed(seed)
    b = len(lengths)
    ring = lambda *shape: torch.randn(b, 2, *shape, generator=draw)[:, 1]  # noqa: E731
    beyond = torch.arange(c) >= torch.tensor(lengths)[:, None, None]  # [B, 1, C]
    keys, values = ring(g, c, d), ring(g, c, d)
    scales = [None, None]
    if int8:
        keys, values = ((40 * t).round().clamp(-128, 127).to(torch.int8) for t in (keys, values))
        scales = [(1 + ring(g, c).abs()).div(60).masked_fill(beyond, float("nan")) for _ in range(2)]
    else:
        keys, values = (t.masked_fill(beyond[..., None], float("nan")).to(dtype) for t in (keys, values))
    query = 4 * torch.randn(b, m, h, d, generator=draw).to(dtype)  # so that few tokens take most of the weight
    return [query, keys, values, torch.tensor(lengths, dtype=torch.int32), *scales]


def run(emulated, arguments, seed=0, kernel="windowed_attention"):
    query, keys, _, _, key_scale, _ = arguments
    (b, m, h, d), (_, g, c, _) = query.shape, keys.shape
    out = torch.full_like(query, float("nan"))
    strides = [0 if t is None else t.stride(0) for t in arguments[1:3] + arguments[4:]]
    emulated(kernel, query.dtype, key_scale is not None, d, [*arguments, out], [*strides, b, m, h, g, c], seed)
    return out


def reference(query, *ring):
    """In float32; of what lies beyond the length nothing but zeros."""
    out = windowed_attention_reference(query.float(), *(t if t is None else t.nan_to_num() for t in ring))
    return out.to(query.dtype)


def assert_equals_the_reference(out, arguments):
    tolerance = 1.5e-2 if arguments[4] is not None else TOLERANCE[out.dtype]  # with int8, weights are bfloat16
    torch.testing.assert_close(out, reference(*arguments), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("d", [64, 128])
def test_kernel_computes_what_the_reference_computes(emulated, kernel, dtype, int8, d):
    arguments = inputs((70, 0, 1, 150), dtype=dtype, int8=int8, d=d)
    assert_equals_the_reference(run(emulated, arguments, kernel=kernel), arguments)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape",
    [
        {"m": 1, "h": 1, "g": 1, "c": 1, "lengths": (1,)},
        {"m": 130, "h": 2, "g": 2, "c": 64, "lengths": (64,)},
        {"m": 45, "h": 6, "g": 2, "c": 129, "lengths": (129, 128)},
        {"m": 9, "h": 12, "g": 2, "c": 63, "d": 128, "lengths": (63, 17)},
        {"m": 3, "h": 2, "c": 700, "lengths": (700, 0, 0, 260, 5)},
        {"m": 70, "h": 2, "c": 400, "lengths": (385, 400), "int8": True, "dtype": torch.float16},
        {"m": 7, "h": 3, "g": 3, "c": 257, "int8": True, "lengths": (257,)},
    ],
)
def test_kernel_takes_odd_shapes(emulated, kernel, shape):
    arguments = inputs(**shape)
    assert_equals_the_reference(run(emulated, arguments, kernel=kernel), arguments)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("int8", [False, True])
def test_order_of_warps_and_copies_does_not_matter(emulated, kernel, int8):
    arguments = inputs((150, 400), m=40, c=400, int8=int8)
    first = run(emulated, arguments, kernel=kernel)
    for seed in range(1, 5):
        assert torch.equal(run(emulated, arguments, seed, kernel), first)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_that_grow_from_tile_to_tile_stay_exact(emulated, kernel):
    arguments = inputs((150,), dtype=torch.float16)
    arguments[1] *= torch.arange(150).view(1, 1, -1, 1) / 20
    assert_equals_the_reference(run(emulated, arguments, kernel=kernel), arguments)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scales_of_int8_may_be_tiny(emulated, kernel):
    arguments = inputs((70,), dtype=torch.float16, int8=True)
    arguments[5] *= 1e-5
    expected = reference(arguments[0].float(), *arguments[1:])
    out = run(emulated, arguments, kernel=kernel).float()
    assert (out - expected).abs().max() < 1.5e-2 * expected.abs().max()


BOTH, MMA, HOPPER = KERNELS, KERNELS[:1], KERNELS[1:]
DEFECTS = [
    (BOTH, "there ? from + i * kStep * D : line.numbers,\n           there", "from + i * kStep * D, true"),
    (BOTH, "i / 4 * 8 + lane % 4 * 2 + i % 2 >= columns", "i / 4 * 8 + lane % 4 * 2 + i % 2 > columns"),
    (BOTH, "(chunk ^ row) % 8", "(chunk + row) % 8"),
    (MMA, "sync_block();  // the values are there for all, and all", "// all"),
    (HOPPER, "    fence_for_matrix_units();\n    barrier_arrive", "    barrier_arrive"),
    (HOPPER, "copy_wait<kLag - 1>();", "copy_wait<kLag>();"),
    (HOPPER, "barrier_wait(memory.empty(load), Memory::parity(load) ^ 1);", ""),
    (HOPPER, "warpgroup_wait<1>();", ""),
    (HOPPER, "k % 4 * 32, 16), k > 0", "k % 4 * 32, 16), true"),
    (HOPPER, "+ k * 16 * 128, kHopperKeys * 128", "+ k * 8 * 128, kHopperKeys * 128"),
]


@pytest.mark.parametrize(("kernels", "old", "new"), DEFECTS)
def test_seeded_defect_is_found(emulate, kernels, old, new):
    broken = emulate(old, new)
    for kernel in kernels:
        with pytest.raises((AssertionError, RuntimeError)):
            for seed in range(6):
                for int8 in (False, True):
                    arguments = inputs((3, 385), m=40, c=400, int8=int8, seed=seed)
                    assert_equals_the_reference(run(broken, arguments, seed, kernel), arguments)


@pytest.mark.parametrize(
    ("name", "dtype", "d", "by_triton"),
    [
        ("windowed_attention", torch.bfloat16, 64, False),
        ("windowed_attention", torch.float32, 64, True),
        ("windowed_attention", torch.float16, 48, True),
        ("rope_cache_write", None, 128, False),  # CUDA C++ takes every dtype here
        ("rope_cache_write", None, 32, True),
    ],
)
def test_triton_runs_the_heads_that_cuda_does_not_take(monkeypatch, name, dtype, d, by_triton):
    triton = object()
    monkeypatch.setattr(ops, "kernels", SimpleNamespace(FACES={name: triton}), raising=False)
    ring = SimpleNamespace(is_cuda=True, shape=(1, 1, 8, d))
    assert (ops.attention_face(name, ring, dtype) is triton) == by_triton
    ring.is_cuda = False
    assert ops.attention_face(name, ring, dtype) is getattr(torch.ops.worldenv, name)
