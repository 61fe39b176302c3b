import pytest
import torch

from worldenv.ops.rope_cache_write import rope_cache_write, rope_cache_write_reference

B, M, H, G, D, C, L = 4, 256, 12, 2, 128, 1088, 64  # libero-base: a chunk of 4 frames into a ring of 17


def inputs(dtype, levels):
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, M, (H + 2 * G) * D, generator=draw).to(dtype)
    frame, place = torch.tensor([1, 5, 29, 9], dtype=torch.int32), torch.tensor([64, 320, 896, 576], dtype=torch.int32)
    angles = torch.rand(D // 2, generator=draw), 6 * torch.rand(L, D // 2, generator=draw)
    rings = (torch.zeros(B, G, C, D, dtype=torch.int8 if levels else dtype) for _ in range(2))
    scales = (torch.zeros(B, G, C) for _ in range(2 * levels))
    return qkv, torch.ones(D), torch.ones(D), frame, place, *angles, *rings, *scales


@torch.no_grad()
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def bench_rope_cache_write(versus, kind):
    arguments = inputs(torch.float32 if kind == "int8" else getattr(torch, kind), kind == "int8")
    compiled = torch.compile(rope_cache_write_reference)
    expected = rope_cache_write_reference(*arguments)
    for face in (rope_cache_write, compiled):
        torch.testing.assert_close(face(*arguments), expected, rtol=0, atol=3e-2)
    result = versus(
        lambda: rope_cache_write(*arguments),
        {"eager": lambda: rope_cache_write_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=B,
    )
    assert result["speedup_over"]["eager"] > 1.6
