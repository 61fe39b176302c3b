"""Every csrc/cuda/*.cu is compiled by nvcc for three architectures: no error, no warning, no spilled register.

Needs no GPU and no torch with CUDA: the files use torch's stable ABI alone. `pip install ".[cuda-check]"` brings nvcc.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("80", "90a", "100")
STANDARD = "-std=c++17"  # the lower of those that torch builds with: 2.11 takes it, later ones c++20
STABLE_ABI = re.search(r"-DTORCH_TARGET_VERSION=\w+", (ROOT / "setup.py").read_text(encoding="utf-8"))[0]
USAGE = re.compile(
    r"Compiling entry function '(?P<kernel>\S+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def find_nvcc():
    """nvcc of CUDA_HOME, on PATH, or of the package nvidia-cuda-nvcc."""
    homes = [os.environ.get("CUDA_HOME"), *sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*"))]
    inside = [str(Path(home) / "bin/nvcc") for home in homes if home and (Path(home) / "bin/nvcc").exists()]
    return inside[0] if inside else shutil.which("nvcc")


def compile_cuda(source, folder, *flags):
    """nvcc's report, all its targets in one call, side by side."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    includes = [f"-isystem={path}" for path in include_paths()]
    command = [
        find_nvcc(),
        STANDARD,
        "-O3",
        "--threads=0",
        "-Xptxas",
        "-v",
        STABLE_ABI,
        "-DUSE_CUDA",
        *targets,
        *includes,
        f"-I{ROOT / 'csrc'}",
        *flags,
        "-c",
        str(source),
        "-o",
        str(folder / "object.o"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stderr


def spilled(report):
    """One line for each kernel that spills, with what it uses."""
    usages = [usage.groupdict() for usage in USAGE.finditer(report)]
    assert {usage["arch"] for usage in usages} == set(ARCHITECTURES), report[-4000:]
    return [
        f"sm_{u['arch']} {u['kernel']}: {u['registers']} registers, {u['shared'] or 0} bytes of static shared memory, "
        f"spills {u['stores']} bytes and loads {u['loads']}"
        for u in usages
        if int(u["stores"]) or int(u["loads"])
    ]


needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None, reason='no nvcc in CUDA_HOME or on PATH: pip install ".[cuda-check]" brings one'
)


@needs_nvcc
@pytest.mark.parametrize("source", sorted((ROOT / "csrc/cuda").glob("*.cu")), ids=lambda path: path.stem)
def test_cuda_face_compiles_without_a_spill(source, tmp_path):
    report = compile_cuda(source, tmp_path)
    assert spilled(report) == []
    # "Potential Performance Loss": ptxas runs matrix products of Hopper one after the other
    assert [line for line in report.splitlines() if "warning" in line or "Performance Loss" in line] == []


@needs_nvcc
def test_spill_is_found(tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text("""
        __global__ void __launch_bounds__(1024) f(float* x) {
          float y[96];
          #pragma unroll
          for (int i = 0; i < 96; ++i) y[i] = x[i * 1024 + threadIdx.x];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < 96; ++i) x[i * 1024 + (threadIdx.x ^ 1)] = y[95 - i];
        }""")
    assert len(spilled(compile_cuda(source, tmp_path))) == len(ARCHITECTURES)
