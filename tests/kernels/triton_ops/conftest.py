"""The Triton faces, run on a CUDA device, or on the CPU in a process with TRITON_INTERPRET=1 (../test_triton.py).

Triton reads that variable as a kernel is defined, and its interpreter multiplies bfloat16 wrongly: hence a process of
its own, and no bfloat16 in it.
"""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
EXACT = 1e-5 if INTERPRETED else 3e-5  # a device fuses products and sums
TOLERANCE = {torch.float32: EXACT, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # relative and absolute

if INTERPRETED:
    collect_ignore = ["test_on_device.py"]
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def pytest_generate_tests(metafunc):
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])


@pytest.fixture(autouse=True)
def memory_that_is_not_written_is_not_a_number():
    # So that an element that a kernel leaves out fails its test.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def draw(device):
    """`draw(*shape)`: standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(device, dtype)


@pytest.fixture
def assert_same():
    """Whether a result equals the reference's, to the precision of its own dtype or of `dtype`."""

    def check(actual, expected, dtype=None):
        tolerance = TOLERANCE[dtype or expected.dtype]
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    return check
