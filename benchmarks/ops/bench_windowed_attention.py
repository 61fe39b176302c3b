import pytest
import torch
from torch.nn import functional as F

from worldenv.ops.windowed_attention import windowed_attention, windowed_attention_reference

B, M, H, G, C, D = 2, 256, 12, 2, 1088, 128  # libero-base: a chunk of 4 frames over a ring of 17


def inputs(dtype=torch.float32, levels=False):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(B, M, H, D, generator=draw).to(dtype)
    rings = torch.randn(2, B, G, C, D, generator=draw)
    if not levels:
        return query, *rings.to(dtype), None, None
    scales = rings.abs().amax(-1) / 127
    return query, *(rings / scales[..., None]).round().to(torch.int8), *scales


def sdpa(query, keys, values, mask=None):
    out = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("length", [832, 1088])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def bench_windowed_attention(versus, kind, length):
    """Episodes as long as each other: PyTorch's attention reads a slice, in floats, and in the ring's own numbers."""
    levels = kind == "int8"
    query, keys, values, *scales = inputs(torch.float32 if levels else getattr(torch, kind), levels)
    lengths = torch.full((B,), length, dtype=torch.int32)
    arguments = (query, keys, values, lengths, *scales)
    query32, keys32, values32, *_ = inputs()
    floats = query32, keys32[:, :, :length], values32[:, :, :length]
    compiled = torch.compile(windowed_attention_reference)
    expected = windowed_attention_reference(*arguments)
    for found in (windowed_attention(*arguments), compiled(*arguments), sdpa(*floats).to(query.dtype)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)

    rivals = {
        "eager": lambda: windowed_attention_reference(*arguments),
        "compile": lambda: compiled(*arguments),
        "sdpa_float32": lambda: sdpa(*floats),
    }
    if kind == "bfloat16":
        rivals["sdpa_bfloat16"] = lambda: sdpa(query, keys[:, :, :length], values[:, :, :length])
    result = versus(lambda: windowed_attention(*arguments), rivals, flops=4 * B * M * H * D * length, batch=B)
    assert result["speedup_over"]["eager"] > 1.0


@torch.no_grad()
def bench_windowed_attention_with_a_length_of_each_episode(versus):
    """Episodes of different ages: PyTorch's attention reads the whole ring and masks."""
    query, keys, values, *_ = inputs()
    lengths = torch.tensor([576, 1088], dtype=torch.int32)
    mask = (torch.arange(C) < lengths[:, None])[:, None, None]
    found, expected = windowed_attention(query, keys, values, lengths), sdpa(query, keys, values, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    result = versus(
        lambda: windowed_attention(query, keys, values, lengths),
        {"sdpa_masked": lambda: sdpa(query, keys, values, mask)},
        flops=4 * M * H * D * int(lengths.sum()),
        batch=B,
    )
    assert result["speedup_over"]["sdpa_masked"] > 1.0
