import pytest
import torch

from worldenv.ops.adaln import adaln, adaln_reference


def inputs():
    draw = torch.Generator().manual_seed(0)
    shapes = ((24, 64, 160), (24, 160), (24, 160), (24, 64, 160), (24, 160))
    return [torch.randn(shape, generator=draw) for shape in shapes]


@torch.no_grad()
def bench_adaln(versus):
    arguments = (*inputs(), 0.0, 0)
    compiled = torch.compile(adaln_reference)
    for face in (adaln_reference, compiled):
        torch.testing.assert_close(adaln(*arguments), face(*arguments), rtol=1e-5, atol=1e-4)

    result = versus(
        lambda: adaln(*arguments),
        {"eager": lambda: adaln_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=24,
    )
    assert result["speedup_over"]["eager"] > 1.6


@pytest.mark.parametrize("face", ["eager"])
def bench_adaln_with_its_gradient(versus, face):
    leaves = [t.requires_grad_() for t in inputs()]

    def step(function):
        x, y = function(*leaves, 0.0, 0)
        return torch.autograd.grad(x.sum() + y.square().sum(), leaves)

    for actual, expected in zip(step(adaln), step(adaln_reference), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    result = versus(lambda: step(adaln), {face: lambda: step(adaln_reference)}, batch=24)
    assert result["speedup_over"][face] > 1.0
