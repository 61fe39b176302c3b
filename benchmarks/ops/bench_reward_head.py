import pytest
import torch

from worldenv.ops.reward_head import reward_head, reward_head_reference


@torch.no_grad()
@pytest.mark.parametrize("b", [1, 32, 256])
def bench_reward_head(versus, b, k=4, d=256, d1=256, d2=64):
    draw = torch.Generator().manual_seed(0)
    shapes = (b, k, d), (b, d), (b, d), (3 * d,), (3 * d,), (d1, 3 * d), (d1,), (d2, d1), (d2,), (1, d2), (1,)
    feature, first, total, *weights = (torch.randn(shape, generator=draw) for shape in shapes)
    weights = [weight / weight.shape[-1] ** 0.5 for weight in weights]
    compiled = torch.compile(reward_head_reference)

    def judge(face):
        return face(feature, first, total.clone(), torch.ones(b, 1), *weights, 0.5)

    for face in (reward_head_reference, compiled):
        torch.testing.assert_close(judge(reward_head)[0], judge(face)[0], rtol=0, atol=1e-5)
    result = versus(
        lambda: judge(reward_head),
        {"eager": lambda: judge(reward_head_reference), "compile": lambda: judge(compiled)},
        flops=2 * b * k * (3 * d * d1 + d1 * d2 + d2),
        batch=b,
    )
    assert result["speedup_over"]["eager"] > 0.9
