"""What `make gpu` times runs here too, in small: nobody has a card to try it on."""

import bench_shapes
import pytest
import torch
from causal import make_ways, random_starts

from worldenv.rollout.engine import EngineConfig
from worldenv.worlds.causal.network import CausalConfig

SMALL = CausalConfig(image_size=32, patch=16, channels=8, width=64, layers=2, heads=2, key_heads=1, cache="int8")


@pytest.mark.parametrize("shape", ["tabletop", "libero_base"])
def test_engines_of_both_shapes_run(monkeypatch, shape):
    monkeypatch.setattr(bench_shapes, "DEVICE", "cpu")
    monkeypatch.setattr(bench_shapes, "LIBERO_BASE", SMALL)
    engine = getattr(bench_shapes, shape)(EngineConfig(horizon=8, capacity=3))
    out = engine.run(random_starts(3, engine.world.size[0]), 1, 0, stop=False)
    assert not out.broken.any() and (out.chunks == 2).all()
    assert bench_shapes.flops_a_frame(engine) > 0


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "least_db"), [(torch.float32, 50), (torch.bfloat16, 30)])
def test_ways_of_reading_the_past_imagine_the_same(dtype, least_db):
    actions = torch.rand(2, 16, 7) * 2 - 1
    first, *others = make_ways(SMALL, "cpu", dtype, random_starts(2, 32), actions, False).items()
    expected = first[1]().float()
    for name, way in others:
        error = (way().float() - expected).square().mean()
        if "one step" not in name:
            assert error == 0 or 10 * torch.log10(255**2 / error) > (least_db if "8-bit" not in name else 30), name
