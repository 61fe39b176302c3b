import pytest
import torch
from torch import nn

from worldenv.nn.int8 import in_int8
from worldenv.worlds.composer.network import TransformerLayer

RANGES = {"qkv": (-5.0, 5.0), "merge": (-3.0, 3.0), "mlp.0": (-5.0, 5.0), "mlp.2": (-0.2, 4.0)}


@pytest.mark.parametrize("batch", [32, 256])
@torch.no_grad()
def bench_transformer_int8(versus, batch):
    torch.manual_seed(0)
    layer = TransformerLayer(160, 5, 320)
    nn.init.normal_(layer.modulate.weight, std=0.02)
    small = in_int8(layer, RANGES)
    x, condition = torch.randn(batch, 64, 160), torch.randn(batch, 320)
    compiled = torch.compile(layer)
    assert (small(x, condition) - layer(x, condition)).abs().mean() < 0.02
    result = versus(
        lambda: small(x, condition),
        {"eager": lambda: layer(x, condition), "compile": lambda: compiled(x, condition)},
        batch=batch,
    )
    assert result["speedup_over"]["eager"] > 1.5 and result["speedup_over"]["compile"] > 1.5
