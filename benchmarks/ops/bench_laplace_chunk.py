import pytest
import torch

from worldenv.ops.laplace_chunk import laplace_chunk, laplace_chunk_reference


@torch.no_grad()
@pytest.mark.parametrize("b", [32, 256])
def bench_laplace_chunk(versus, b):
    draw, episode = torch.Generator().manual_seed(0), torch.arange(b)
    arguments = (torch.randn(b, 4, 7, generator=draw), torch.full((b, 4, 7), -2.0), 3, episode, episode, True)
    compiled = torch.compile(laplace_chunk_reference)
    for face in (laplace_chunk_reference, compiled):
        torch.testing.assert_close(laplace_chunk(*arguments), face(*arguments), rtol=1e-5, atol=1e-4)
    result = versus(
        lambda: laplace_chunk(*arguments),
        {"eager": lambda: laplace_chunk_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=b,
    )
    assert result["speedup_over"]["eager"] > 1.6
