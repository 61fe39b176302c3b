"""The peak rate of matrix products on a GPU, to which every "share of peak" refers."""

import pytest
import torch

SIZE = 8192  # of the square matrices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def bench_matrix_peak(benchmark, dtype):
    x, w = (torch.randn(SIZE, SIZE, device="cuda", dtype=dtype) for _ in range(2))

    def multiply():
        for _ in range(10):
            x @ w
        torch.cuda.synchronize()

    benchmark.pedantic(multiply, rounds=10, warmup_rounds=3)
    if benchmark.stats:
        benchmark.extra_info["tflop_per_s"] = 10 * 2 * SIZE**3 / benchmark.stats["min"] / 1e12
