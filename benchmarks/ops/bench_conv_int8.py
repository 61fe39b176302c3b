import pytest
import torch

from worldenv.nn.int8 import Conv, Int8
from worldenv.ops.packed import quantise


def by_onednn(layer, conv):
    """The same layer by the library that torch has for 8 bits."""
    scale = conv.weight.flatten(1).abs().amax(1) / 127
    levels = (conv.weight / scale[:, None, None, None]).round().to(torch.int8)
    window = conv.stride, conv.padding, [1, 1], 1
    grid = layer.layer[1:]
    packed = torch.ops.onednn.qconv_prepack(levels, scale, *grid, *window)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    multiply = torch.ops.onednn.qconv_pointwise
    return lambda x: multiply(x, *grid, packed, scale, zeros, conv.bias, *window, 1.0, 0, torch.float32, "none", [], "")


@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "window", "stride"), [(40, 80, 32, 3, 2), (80, 160, 16, 3, 2), (160, 320, 8, 1, 1)]
)
@torch.no_grad()
def bench_conv_int8(versus, inputs, outputs, size, window, stride, batch=32):
    torch.manual_seed(0)
    conv = Conv(inputs, outputs, window, stride=stride, padding=window // 2).to(memory_format=torch.channels_last)
    layer = Int8(conv, (-3.0, 3.0))
    x = torch.randn(batch, inputs, size, size).clamp(-3, 3).to(memory_format=torch.channels_last)
    library, compiled = by_onednn(layer, conv), torch.compile(lambda x: conv(x))
    levels = quantise(x, *layer.layer[1:])  # for the library, whose rounding of x is not timed
    assert (layer(x) - conv(x)).abs().mean() < 0.02 and (layer(x) - library(levels)).abs().max() < 1e-4
    result = versus(
        lambda: layer(x),
        {"eager": lambda: conv(x), "compile": lambda: compiled(x), "onednn": lambda: library(levels)},
        batch=batch,
    )
    operations = 2 * inputs * outputs * (window * size // stride) ** 2 * batch
    result["gop_per_s"] = operations / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 1.5 and result["speedup_over"]["compile"] > 1.5
