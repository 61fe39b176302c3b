import pytest
import torch

from worldenv.ops.rowwise_linear import rowwise_linear, rowwise_linear_reference


@torch.no_grad()
@pytest.mark.parametrize(("i", "o"), [(320, 960), (320, 80), (256, 28)])
@pytest.mark.parametrize("b", [1, 32, 256])
def bench_rowwise_linear(versus, b, i, o):
    """Against MKL, whose last bit depends on b; no torch.compile: it would call the same."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in ((b, i), (o, i), (o,)))
    arguments = (x, weight / i**0.5, bias)
    torch.testing.assert_close(rowwise_linear(*arguments), rowwise_linear_reference(*arguments), rtol=0, atol=1e-5)
    result = versus(
        lambda: rowwise_linear(*arguments),
        {"eager": lambda: rowwise_linear_reference(*arguments)},
        flops=2 * b * i * o,
        batch=b,
    )
    assert b == 1 or result["speedup_over"]["eager"] > 0.6  # one row of a small layer is read faster than it is checked
