import pytest
import torch

from worldenv.ops.adagn import adagn, adagn_reference


@pytest.mark.parametrize(("batch", "channels", "size"), [(24, 40, 32), (24, 80, 16), (96, 64, 16)])
@torch.no_grad()
def bench_adagn(versus, batch, channels, size):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=draw).to(memory_format=torch.channels_last)
    vectors = [torch.randn(*shape, generator=draw) for shape in ((channels,), (channels,), *[(batch, channels)] * 2)]
    arguments = (x, 8, *vectors, "silu")
    compiled = torch.compile(adagn_reference)
    y = adagn(*arguments)
    torch.testing.assert_close(y, adagn_reference(*arguments), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(y, compiled(*arguments), rtol=1e-5, atol=1e-4)

    result = versus(
        lambda: adagn(*arguments),
        {"eager": lambda: adagn_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=batch,
    )
    result["gb_per_s"] = 2 * x.nbytes / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 1.6
