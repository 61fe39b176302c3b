import torch

from worldenv.ops.philox import Use, philox, philox_reference


def bench_philox(versus):
    batch, shape = 24, (4, 3, 64, 64)
    episode = chunk = torch.arange(batch)
    arguments = (0, episode, chunk, Use.FRAME)
    count = 4 * 3 * 64 * 64
    compiled = torch.compile(philox_reference)
    expected = philox_reference(*arguments, count, True)
    torch.testing.assert_close(philox(*arguments, shape, normal=True).flatten(1), expected, rtol=0, atol=3e-6)
    torch.testing.assert_close(compiled(*arguments, count, True), expected, rtol=0, atol=3e-6)

    result = versus(
        lambda: philox(*arguments, shape, normal=True),
        {
            "eager": lambda: philox_reference(*arguments, count, True),
            "compile": lambda: compiled(*arguments, count, True),
            "torch.randn": lambda: torch.randn(batch, *shape),  # does not depend on the episode alone
        },
        batch=batch,
    )
    result["gb_per_s"] = 4 * batch * count / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 2
