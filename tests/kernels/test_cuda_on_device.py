"""The CUDA faces on a CUDA device: equal to the reference, captured in a graph, and clear about what they do not take.

What the emulator's tests show of the kernels is shown here of the device, with the same inputs.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldenv import ops
from worldenv.ops.rope_cache_write import rope_cache_write, rope_cache_write_reference
from worldenv.ops.windowed_attention import windowed_attention, windowed_attention_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and importlib.util.find_spec("worldenv._cuda") is None,
        reason="worldenv._cuda is not built: install with nvcc on PATH",
    ),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def load(name):
    """A test module beside this one."""
    spec = importlib.util.spec_from_file_location(f"emulated_{name}", Path(__file__).parent / f"test_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


attention = load("windowed_attention")
rope = load("rope_cache_write")


def on_device(arguments):
    """The same tensors, as strided as they were."""
    return [
        t
        if t is None
        else t.new_empty(max(t.stride(0) * len(t), t.numel()), device="cuda").as_strided(t.shape, t.stride()).copy_(t)
        for t in arguments
    ]


def finite(arguments):
    """What the reference may be given: zeros beyond the length."""
    query, *ring = arguments
    return [query.float(), *(t if t is None else t.nan_to_num() for t in ring)]


def test_module_is_loaded():
    assert ops.CUDA_ERROR is None  # else the tests below would run Triton's faces


SHAPES = [
    {"lengths": (70, 0, 1, 150)},
    {"lengths": (1,), "m": 1, "h": 1, "g": 1, "c": 1},
    {"lengths": (129, 128), "m": 45, "h": 6, "c": 129},
    {"lengths": (1088, 640, 63), "m": 256, "h": 12, "c": 1088, "d": 128},
]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_windowed_attention_equals_the_reference(dtype, int8, shape):
    arguments = on_device(attention.inputs(dtype=dtype, int8=int8, **shape))
    out = windowed_attention(*arguments)
    expected = windowed_attention_reference(*finite(arguments)).to(dtype)
    tolerance = TOLERANCE[torch.bfloat16 if int8 else dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_windowed_attention_takes_rings_beyond_32_bits():
    b, c, d = 3, 1024, 128
    step = 1 << 30  # numbers from one episode to the next: the third is 4 GB away
    rings = torch.empty(2 * step + 2 * c * d, dtype=torch.bfloat16, device="cuda")
    ring = rings.as_strided((b, 2, c, d), (step, c * d, d, 1)).normal_()
    query, length = torch.randn(b, 8, 4, d, dtype=torch.bfloat16, device="cuda"), torch.tensor([c] * b).int().cuda()
    expected = windowed_attention_reference(query.float(), ring, ring, length).bfloat16()
    torch.testing.assert_close(windowed_attention(query, ring, ring, length), expected, rtol=1.6e-2, atol=1.6e-2)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="the device is no Hopper"
)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_for_hopper_equals_the_reference(dtype, int8, tmp_path):
    """WORLDENV_WGMMA is read once, so the kernel runs in a process of its own."""
    cases = [on_device(attention.inputs(dtype=dtype, int8=int8, **shape)) for shape in SHAPES]
    torch.save(cases, tmp_path / "in.pt")
    code = (
        "import torch; from worldenv.ops.windowed_attention import windowed_attention; "
        f"torch.save([windowed_attention(*case) for case in torch.load({str(tmp_path / 'in.pt')!r})], "
        f"{str(tmp_path / 'out.pt')!r})"
    )
    environment = os.environ | {"WORLDENV_WGMMA": "1"}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=40, env=environment)
    tolerance = TOLERANCE[torch.bfloat16 if int8 else dtype]
    for out, case in zip(torch.load(tmp_path / "out.pt"), cases, strict=True):
        expected = windowed_attention_reference(*finite(case)).to(dtype)
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"b": 1, "m": 1, "tokens": 1, "h": 1, "g": 1, "c": 1},
        {"b": 3, "m": 7, "tokens": 7, "h": 9, "g": 3, "c": 7, "d": 128},
        {"b": 9, "m": 256, "tokens": 64, "h": 12, "c": 1088, "d": 128},
    ],
    ids=str,
)
def test_rope_cache_write_equals_the_reference(dtype, int8, shape):
    arguments = on_device(rope.inputs(dtype=dtype, int8=int8, **shape))
    expected = on_device(arguments)
    query, wanted = rope_cache_write(*arguments), rope_cache_write_reference(*expected)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(query, wanted, **tolerance)
    for actual, ring in zip(arguments[7:], expected[7:], strict=True):
        if actual is not None and actual.dtype == torch.int8:  # a rounding may fall to the other side
            assert (actual.int() - ring.int()).abs().max() <= 1
        elif actual is not None:
            torch.testing.assert_close(actual, ring, **tolerance)


@pytest.mark.parametrize("int8", [False, True])
def test_captured_in_a_graph_both_give_what_they_give_eagerly(int8):
    written = on_device(rope.inputs(b=4, m=6, tokens=3, h=4, g=2, c=150, d=64, int8=int8))
    length = torch.full((4,), 150, dtype=torch.int32, device="cuda")

    def step():
        return windowed_attention(rope_cache_write(*written), *written[7:9], length, *written[9:])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # loads the kernels, which a capture must not
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    written[0].normal_()
    written[4].fill_(7)
    graph.replay()
    torch.testing.assert_close(captured, step(), rtol=0, atol=0)


def test_what_the_face_does_not_take_is_refused_with_the_way_out():
    query, keys, values, length, *_ = on_device(attention.inputs())
    face = torch.ops.worldenv.windowed_attention
    with pytest.raises(RuntimeError, match="WORLDENV_BACKEND=triton"):
        face(query.float(), keys.float(), values.float(), length)
    with pytest.raises(RuntimeError, match="head has 32 numbers.*WORLDENV_BACKEND=triton"):
        face(*(t[..., :32].contiguous() for t in (query, keys, values)), length)


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 64), (torch.bfloat16, 32)])
def test_heads_that_cuda_does_not_take_are_run_by_triton(dtype, d):
    query, keys, values, length = on_device(attention.inputs(dtype=dtype, d=d))[:4]
    found, wanted = (f(query, keys, values, length) for f in (windowed_attention, windowed_attention_reference))
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[torch.bfloat16], atol=TOLERANCE[torch.bfloat16])
    written = on_device(rope.inputs(dtype=dtype, d=d))
    query, wanted = rope_cache_write(*written), rope_cache_write_reference(*on_device(written))
    torch.testing.assert_close(query, wanted, rtol=TOLERANCE[torch.bfloat16], atol=TOLERANCE[torch.bfloat16])
