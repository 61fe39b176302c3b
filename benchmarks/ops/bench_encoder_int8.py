import pytest
import torch

from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.nn.int8 import in_int8, measured


@pytest.mark.parametrize("batch", [32, 128])
@torch.no_grad()
def bench_encoder_int8(versus, batch):
    """The whole encoder of the embedded policy and reflector; its linear layers are a percent."""
    torch.manual_seed(0)
    encoder = VisionLanguageEncoder().eval().to(memory_format=torch.channels_last)
    frames, read = torch.randint(256, (batch, 64, 64, 3), dtype=torch.uint8), torch.zeros(batch, 8, dtype=torch.long)
    with measured(encoder) as ranges:
        expected = encoder(frames, read)
    small, compiled = in_int8(encoder, ranges), torch.compile(encoder)
    assert (small(frames, read) - expected).abs().mean() < 0.05 * expected.std()
    result = versus(
        lambda: small(frames, read),
        {"eager": lambda: encoder(frames, read), "compile": lambda: compiled(frames, read)},
        batch=batch,
    )
    result["gop_per_s"] = 94.1e6 * batch / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 2 and result["speedup_over"]["compile"] > 1.5
