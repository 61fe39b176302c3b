import torch

from worldenv.ops.unpatchify import unpatchify, unpatchify_reference


def bench_unpatchify(versus):
    draw = torch.Generator().manual_seed(0)
    arguments = (torch.randn(24, 32, 32, 4, 12, generator=draw),)
    compiled = torch.compile(unpatchify_reference)
    for face in (unpatchify_reference, compiled):
        torch.testing.assert_close(unpatchify(*arguments), face(*arguments), rtol=0, atol=0)

    result = versus(
        lambda: unpatchify(*arguments),
        {"eager": lambda: unpatchify_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=len(arguments[0]),
    )
    assert result["speedup_over"]["eager"] > 1.6
