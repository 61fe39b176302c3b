"""Random trajectories of any kind, and how two are compared."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import worldenv
from worldenv.data.trajectory import Trajectory

ARRAYS = ("frames", "proprio", "actions", "success")
LABELS = ("views", "instruction", "task", "start", "split", "source")


def make_trajectory(
    seed: int = 0,
    steps: int = 5,
    size: tuple[int, int] = (7, 9),
    views: tuple[str, ...] = ("agentview",),
    proprio: int = 7,
    actions: int = 7,
    camera: bool = True,
) -> Trajectory:
    rng = np.random.default_rng(seed)
    return Trajectory(
        frames=rng.integers(0, 256, (steps + 1, len(views), *size, 3), dtype=np.uint8),
        proprio=rng.normal(size=(steps + 1, proprio)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, actions)).astype(np.float32),
        success=rng.random(steps) > 0.5,
        camera=rng.normal(size=(len(views), 3, 4)).astype(np.float32) if camera else None,
        views=views,
        instruction=f"put block {seed} into the bowl",
        task=f"task {seed % 2}",
        start=seed,
        split="train",
        source="policy" if seed % 2 else "expert",
    )


def check_same(found, expected) -> None:
    """Whether two trajectories, or two sequences of them, are equal."""
    if not isinstance(expected, Trajectory):
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
        return
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    assert (found.camera is None) == (expected.camera is None)
    if expected.camera is not None:
        np.testing.assert_array_equal(found.camera, expected.camera, strict=True)
    assert [getattr(found, name) for name in LABELS] == [getattr(expected, name) for name in LABELS]


@pytest.fixture(scope="session")
def make():
    return make_trajectory


@pytest.fixture(scope="session")
def same():
    return check_same


@pytest.fixture(scope="session")
def python():
    """Runs code in a process of its own; `make_trajectory` and the argument `path` are there."""

    def run(code: str, path: Path, **options) -> subprocess.CompletedProcess:
        root = Path(worldenv.__file__).parents[1]
        setup = f"import sys; sys.path[:0] = [{str(root)!r}, {str(Path(__file__).parent)!r}]\nimport os, h5py\n"
        setup += "from conftest import make_trajectory\nfrom worldenv.data import trajectories\npath = sys.argv[1]\n"
        command = [sys.executable, "-c", setup + code, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)

    return run
