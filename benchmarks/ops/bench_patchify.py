import torch

from worldenv.ops.patchify import patchify, patchify_reference


def bench_patchify(versus):
    draw = torch.Generator().manual_seed(0)
    arguments = (torch.randint(256, (96, 1, 64, 64, 3), generator=draw, dtype=torch.uint8),)
    compiled = torch.compile(patchify_reference)
    for face in (patchify_reference, compiled):
        torch.testing.assert_close(patchify(*arguments), face(*arguments), rtol=0, atol=0)

    result = versus(
        lambda: patchify(*arguments),
        {"eager": lambda: patchify_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=len(arguments[0]),
    )
    assert result["speedup_over"]["eager"] > 1.6
