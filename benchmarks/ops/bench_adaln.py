import pytest
import torch

from worldenv.ops.adaln import adaln, adaln_reference


def inputs(b=24, n=64, d=160, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    shapes = ((b, n, d), (b, d), (b, d), (b, n, d), (b, d))
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize(
    ("b", "n", "d", "dtype"),
    [(24, 64, 160, torch.float32), (2, 256, 1536, torch.float32), (2, 256, 1536, torch.bfloat16)],
    ids=["tabletop", "libero-base", "libero-base-bfloat16"],
)
def bench_adaln(versus, b, n, d, dtype):
    arguments = inputs(b, n, d, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 8e-3
    compiled = torch.compile(adaln_reference)
    for face in (adaln_reference, compiled):
        torch.testing.assert_close(adaln(*arguments), face(*arguments), rtol=tolerance, atol=tolerance)

    result = versus(
        lambda: adaln(*arguments),
        {"eager": lambda: adaln_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=b,
    )
    assert result["speedup_over"]["eager"] > 1.6


@pytest.mark.parametrize("face", ["eager"])
def bench_adaln_with_its_gradient(versus, face):
    leaves = [t.requires_grad_() for t in inputs()]

    def step(function):
        x, y = function(*leaves)
        return torch.autograd.grad(x.sum() + y.square().sum(), leaves)

    for actual, expected in zip(step(adaln), step(adaln_reference), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    result = versus(lambda: step(adaln), {face: lambda: step(adaln_reference)}, batch=24)
    assert result["speedup_over"][face] > 1.0
