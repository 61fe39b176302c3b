import torch

from worldenv.ops.quantise import quantise, quantise_reference


def bench_quantise(versus):
    draw = torch.Generator().manual_seed(0)
    arguments = (torch.randn(24, 64 * 16 * 16, generator=draw), 0.05, 90)
    compiled = torch.compile(quantise_reference)
    for face in (quantise_reference, compiled):
        torch.testing.assert_close(quantise(*arguments), face(*arguments), rtol=0, atol=0)

    result = versus(
        lambda: quantise(*arguments),
        {"eager": lambda: quantise_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=24,
    )
    assert result["speedup_over"]["eager"] > 1.6
