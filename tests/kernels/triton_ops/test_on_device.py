"""What only a CUDA device can show: the ops run compiled kernels there, and a graph captures them."""

import pytest
import torch

from worldenv import kernels, ops
from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.nn.instruction import tokenize
from worldenv.ops.adaln import adaln, adaln_reference
from worldenv.ops.rope_cache_write import rope_cache_write
from worldenv.ops.windowed_attention import windowed_attention, windowed_attention_reference


def chunk(draw, dtype, b=2, m=64, h=12, g=2, c=192, d=128):
    """A chunk's projections, the numbers that say where it goes, and a layer of empty rings."""
    places = (torch.full((b,), value, dtype=torch.int32, device="cuda") for value in (3, c - 5))
    rings = torch.zeros(2, b, 3, g, c, d, dtype=dtype, device="cuda")[:, :, 1]
    return [draw(b, m, (h + 2 * g) * d, dtype=dtype), *draw(2, d), *places, draw(d // 2), draw(32, d // 2), *rings]


def test_every_face_is_one_that_torch_runs_on_the_device():
    assert {"windowed_attention", "adaln", "adaln_backward"} <= kernels.FACES.keys()
    for op in kernels.FACES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"worldenv::{op}", "CUDA")


@torch.no_grad()
def test_captured_chunk_gives_what_it_gives_launched(draw, dtype):
    arguments = chunk(draw, dtype)
    length = torch.full((2,), 100, dtype=torch.int32, device="cuda")

    def attend():
        return windowed_attention(rope_cache_write(*arguments), *arguments[7:], length)

    attend()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attend()
    arguments[0].copy_(draw(*arguments[0].shape))
    length.fill_(150)
    graph.replay()
    rings = [ring.clone() for ring in arguments[7:]]
    launched = attend()
    assert torch.equal(captured, launched)
    for before, after in zip(rings, arguments[7:], strict=True):
        assert torch.equal(before, after)


def test_attention_of_a_whole_ring_at_the_size_of_libero_base(draw, dtype, assert_same):
    query, rings = draw(3, 256, 12, 128, dtype=dtype), draw(2, 3, 2, 832, 128, dtype=dtype)
    length = torch.tensor([832, 700, 256], dtype=torch.int32, device="cuda")
    assert_same(windowed_attention(query, *rings, length), windowed_attention_reference(query, *rings, length))


def test_addresses_beyond_32_bits_are_reached(draw):
    b, n, d = 1400, 1024, 1536  # 2.2e9 numbers
    torch.cuda.empty_cache()  # of the tests before
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free memory")
    x, row = torch.zeros(b, n, d, dtype=torch.bfloat16, device="cuda"), torch.zeros(b, d, device="cuda").bfloat16()
    x[-1] = draw(n, d)
    _, y = torch.ops.worldenv.adaln(x, row, row, None, None)
    alone = torch.ops.worldenv.adaln(x[-1:], row[:1], row[:1], None, None)[1]
    assert torch.equal(y[-1:], alone) and alone.any() and not y[0].any()


@pytest.mark.parametrize(
    ("op", "shape", "kind", "others"),
    [
        ("patchify", (700, 1, 1024, 1024, 3), torch.uint8, ()),
        ("spatial_softmax", (131, 512, 512, 64), torch.bfloat16, ()),
        ("adagn", (131, 512, 512, 64), torch.bfloat16, (8, "weight", "weight", None, None, "relu", 1e-5)),
    ],
)
def test_images_beyond_32_bits_are_reached(draw, op, shape, kind, others):  # 2.2e9 numbers
    torch.cuda.empty_cache()  # of the tests before
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free memory")
    x = torch.zeros(shape, dtype=kind, device="cuda")
    x[-1] = (draw(*shape[1:]) * 50).abs().clamp(max=250).to(kind)
    others = [draw(64).to(kind) if value == "weight" else value for value in others]
    face = getattr(torch.ops.worldenv, op)
    found, alone = face(x, *others)[-1], face(x[-1:], *others)[0]
    assert torch.equal(found, alone) and alone.any()


def test_encoder_runs_no_reference_and_sees_what_it_sees_by_the_references(draw, monkeypatch):
    assert ops.missing_faces(["patchify", "spatial_softmax", "adagn"], torch.device("cuda")) == []
    torch.manual_seed(0)
    encoder = VisionLanguageEncoder().to("cuda")
    tokens = tokenize(["put the red block on the pad", "push the can", "put the can into the tray"]).to("cuda")
    frames = (draw(3, 96, 64, 3) * 50 + 128).clamp(0, 255).to(torch.uint8)
    results = []
    with torch.backends.cudnn.flags(allow_tf32=False):
        for backend in (ops.BACKEND, "reference"):
            monkeypatch.setattr(ops, "BACKEND", backend)
            with torch.no_grad():
                seen = encoder(frames, tokens)
            encoder.zero_grad()
            encoder(frames, tokens).square().sum().backward()  # by the references, whatever the backend
            results.append((seen, *(parameter.grad for parameter in encoder.parameters())))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert all(gradient.any() for gradient in results[0])


def test_gradient_on_the_device_is_that_of_the_reference(draw):
    results, start = [], (draw(2, 40, 1536), *(draw(3, 2, 1536) / 4), draw(2, 40, 1536))
    for face in (adaln, adaln_reference):
        leaves = [t.clone().requires_grad_() for t in start]
        x, scale, shift, gate, branch = leaves
        total, y = face(x, scale, shift, branch, gate)
        (total.sin().sum() + y.cos().sum()).backward()
        results.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
