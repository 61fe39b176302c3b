import pytest
import torch
from torch.nn import functional as F

from worldenv.nn.int8 import Int8, Linear
from worldenv.ops.compose import compose_reference
from worldenv.ops.compose_int8 import compose_int8

SOURCES, FRAMES, CHANNELS = 14, 4, 40


@pytest.mark.parametrize("batch", [32, 256])
@torch.no_grad()
def bench_compose_int8(versus, batch):
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = Linear(CHANNELS, (3 + SOURCES) * FRAMES * 4)
    small = Int8(layer, (-0.3, 6.0))
    x = torch.randn(batch, 32, 32, CHANNELS, generator=draw)
    pictures = torch.randint(256, (batch, 32, 32, SOURCES - 1, 12), generator=draw, dtype=torch.uint8)
    bias = torch.zeros(len(layer.weight))
    bias.view(-1, FRAMES * 4)[3 + 2] = 6.0  # mostly the last frame wins, as in an imagined episode
    others = (bias, pictures, torch.rand(32, 32, 12, generator=draw), 0.05, 0.02)

    def plain():
        return compose_reference(layer(F.silu(x)), *others)

    compiled = torch.compile(plain)
    frames = compose_int8(x, *small.layer, *others)
    assert (frames - plain()).abs().mean() < 1e-2
    result = versus(
        lambda: compose_int8(x, *small.layer, *others),
        {"eager": plain, "compile": compiled},
        batch=batch,
    )
    assert result["speedup_over"]["eager"] > 2 and result["speedup_over"]["compile"] > 1.5
