import pytest
import torch

from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.ops.ppo_loss import ppo_loss, ppo_loss_reference


@pytest.mark.parametrize("b", [32, 256])
def bench_ppo_loss_with_its_gradient(versus, b):
    draw = torch.Generator().manual_seed(0)
    mu, beta = torch.randn(b, 4, 7, generator=draw), torch.full((b, 4, 7), -2.0)
    action = mu + 0.1 * torch.randn(b, 4, 7, generator=draw)
    rest = action, laplace_log_prob(action, mu, beta), torch.randn(b, generator=draw), 0.2
    leaves = [mu.requires_grad_(), beta.requires_grad_()]
    compiled = torch.compile(ppo_loss_reference)

    def step(face):
        loss, _ = face(*leaves, *rest)
        return loss, *torch.autograd.grad(loss, leaves)

    for face in (ppo_loss_reference, compiled):
        torch.testing.assert_close(step(ppo_loss), step(face), rtol=1e-4, atol=1e-5)
    result = versus(
        lambda: step(ppo_loss),
        {"eager": lambda: step(ppo_loss_reference), "compile": lambda: step(compiled)},
        batch=b,
    )
    assert result["speedup_over"]["eager"] > 1.0
