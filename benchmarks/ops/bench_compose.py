import pytest
import torch

from worldenv.ops.compose import compose, compose_reference

SOURCES, FRAMES = 14, 4


@pytest.mark.parametrize("batch", [24, 256])
def bench_compose(versus, write_gb_s, batch):
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(batch, 32, 32, 3 + SOURCES, FRAMES * 4, generator=draw)
    raw[:, :, :, 3 + 2] += 6.0  # mostly the last frame wins, as in an imagined episode
    pictures, plate = (torch.rand(*shape, 12, generator=draw) for shape in ((batch, 32, 32, SOURCES - 1), (32, 32)))
    arguments = (raw.flatten(3), torch.zeros((3 + SOURCES) * FRAMES * 4), pictures, plate, 0.05, 0.02)
    compiled = torch.compile(compose_reference)
    frames = compose(*arguments)
    torch.testing.assert_close(frames, compose_reference(*arguments), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(frames, compiled(*arguments), rtol=0.0, atol=1e-5)

    result = versus(
        lambda: compose(*arguments),
        {"eager": lambda: compose_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=batch,
    )
    moved = raw.nbytes + frames.nbytes  # and the pictures that have a share
    result["gb_per_s"] = moved / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 1.6 and result["speedup_over"]["compile"] > 1.0
