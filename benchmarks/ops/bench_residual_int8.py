import pytest
import torch
from torch.nn import functional as F

from worldenv.nn.int8 import Conv, Int8
from worldenv.ops.residual_int8 import residual_int8


@pytest.mark.parametrize(("channels", "size"), [(40, 32), (80, 16)])
@torch.no_grad()
def bench_residual_int8(versus, channels, size, batch=32, groups=8):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)
    convs = [Conv(channels, channels, 3, padding=1).to(memory_format=torch.channels_last) for _ in range(2)]
    first, second = (Int8(conv, (-0.3, 6.0)).layer for conv in convs)
    norm = torch.ones(channels), torch.zeros(channels)
    condition = tuple(torch.randn(batch, channels) / 4 for _ in range(2))

    def plain():
        scale, shift = (t[:, :, None, None] for t in condition)
        h = convs[0](F.silu(F.group_norm(x, groups, *norm)))
        return convs[1](F.silu(F.group_norm(h, groups, *norm) * (1 + scale) + shift)) + x

    compiled = torch.compile(plain)
    new = residual_int8(x, groups, "silu", norm, first, norm, condition, second)
    assert (new - plain()).abs().mean() < 0.02
    result = versus(
        lambda: residual_int8(x, groups, "silu", norm, first, norm, condition, second),
        {"eager": plain, "compile": compiled},
        batch=batch,
    )
    result["gop_per_s"] = 36 * channels**2 * size**2 * batch / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 2 and result["speedup_over"]["compile"] > 1.5
