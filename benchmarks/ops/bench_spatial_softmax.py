import torch

from worldenv.ops.spatial_softmax import spatial_softmax, spatial_softmax_reference


def bench_spatial_softmax(versus):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(96, 64, 16, 16, generator=draw).to(memory_format=torch.channels_last)
    compiled = torch.compile(spatial_softmax_reference)
    for face in (spatial_softmax_reference, compiled):
        torch.testing.assert_close(spatial_softmax(features), face(features), rtol=1e-4, atol=1e-5)

    result = versus(
        lambda: spatial_softmax(features),
        {"eager": lambda: spatial_softmax_reference(features), "compile": lambda: compiled(features)},
        batch=96,
    )
    result["gb_per_s"] = features.nbytes / result["median_s"]["new"] / 1e9
    assert result["speedup_over"]["eager"] > 1.6
