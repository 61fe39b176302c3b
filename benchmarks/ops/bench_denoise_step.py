import pytest
import torch

from worldenv.ops.denoise_step import denoise_step, denoise_step_reference
from worldenv.ops.philox import Use


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t_next", [0.5, 0.0])
def bench_denoise_step(versus, dtype, t_next):
    draw, episode = torch.Generator().manual_seed(0), torch.arange(32)
    noisy, velocity = (torch.randn(32, 256, 64, generator=draw).to(dtype) for _ in range(2))  # libero-base: 4 frames
    arguments = (noisy, velocity, 0.75, t_next, 3, episode, episode, int(Use.FRAME))
    compiled = torch.compile(denoise_step_reference)
    for face in (denoise_step_reference, compiled):
        torch.testing.assert_close(denoise_step(*arguments), face(*arguments), rtol=0, atol=4e-2)
    result = versus(
        lambda: denoise_step(*arguments),
        {"eager": lambda: denoise_step_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=32,
    )
    assert result["speedup_over"]["eager"] > 1.0
