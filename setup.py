"""Compiled modules, packages and the run-time dependencies; everything else is in pyproject.toml."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # LibTorch stable ABI of torch 2.11
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden"]  # no -std: torch appends its own
# Some compilers link libstdc++ statically. Mixed with the one that torch has loaded, it prints no number, or crashes.
LINK_FLAGS = ["-Wl,--exclude-libs,libstdc++.a"] if sys.platform == "linux" else []
DEPENDENCIES = [
    "numpy>=1.26",
    "h5py>=3.13",  # the HDF5 that 3.10 brings crashes on broken files
    "safetensors>=0.4",
    "tyro>=1.0",
    "rich>=13",
    "tensorboard>=2.16",
    "matplotlib>=3.8",
    "pillow>=10.1",
]


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))  # setuptools refuses absolute paths


def cuda_home() -> str | None:
    # torch takes dirname(dirname(which nvcc)), which is wrong where the nvcc on PATH is a wrapper script.
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    for home in [*candidates, "/usr/local/cuda"]:
        if home and (Path(home) / "bin/nvcc").exists() and (Path(home) / "include/cuda_runtime.h").exists():
            return home
    return None


def wants_cuda(torch) -> bool:
    """Decide by WORLDENV_CUDA=auto|0|1 and prepare the environment that torch's CUDA build reads."""
    mode = os.environ.get("WORLDENV_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"WORLDENV_CUDA is {mode!r}; it should be auto, 0 or 1")
    kernels, home = sources("csrc/cuda/*.cu"), cuda_home()
    if mode == "0" or not kernels or torch.version.cuda is None or home is None:
        if mode == "1":
            raise SystemExit(
                f"WORLDENV_CUDA=1, but there are {len(kernels)} .cu files, torch.version.cuda is "
                f"{torch.version.cuda} and the CUDA toolkit is {home}; install what lacks or set WORLDENV_CUDA=auto"
            )
        return False
    os.environ["CUDA_HOME"] = home
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):  # unset and without a GPU, torch ends in an IndexError
        arch = "8.0;9.0a;10.0+PTX"
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            arch = f"{major}.{minor}" + ("a" if major in (9, 10) else "")
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch
    return True


def compiled(torch) -> dict:
    cuda = wants_cuda(torch)  # before cpp_extension is imported: it reads CUDA_HOME at import
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    stable = {"py_limited_api": True, "include_dirs": ["csrc"], "extra_link_args": LINK_FLAGS}
    flags = [*CXX_FLAGS, STABLE_ABI]
    extensions = [
        CppExtension(
            "worldenv._C",
            ["csrc/ops.cpp", *sources("csrc/cpu/*.cpp")],
            extra_compile_args={"cxx": [*flags, "-DTORCH_STABLE_ONLY"]},
            **stable,
        )
    ]
    if tabletop := sources("csrc/tabletop/*.cpp"):
        import pybind11

        extensions.append(
            Extension(
                "worldenv._tabletop",
                tabletop,
                include_dirs=["csrc", pybind11.get_include()],
                extra_compile_args={"cxx": [*CXX_FLAGS, "-pthread"]},
                extra_link_args=["-pthread", *LINK_FLAGS],
                language="c++",
            )
        )
    if cuda:
        extensions.append(
            CUDAExtension(
                "worldenv._cuda",
                [*sources("csrc/cuda/*.cu"), *sources("csrc/cuda/*.cpp")],
                depends=sources("csrc/cuda/*.h"),
                extra_compile_args={
                    "cxx": [*flags, "-DUSE_CUDA"],
                    "nvcc": ["-O3", "-lineinfo", STABLE_ABI, "-DUSE_CUDA"],
                },
                **stable,
            )
        )
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildExtension}}


def folders(fresh: Path) -> dict:
    """Options of setuptools: objects are kept for the next build, everything else is made anew in `fresh`.

    A wheel takes all that lies in build/lib, and an sdist all that an old list of sources names, so that files which
    the tree no longer has would come back. A tree that cannot be written keeps nothing.
    """
    kept = ROOT / "build"
    if not os.access(kept if kept.exists() else ROOT, os.W_OK):
        kept = fresh / "build"
    return {
        "build": {"build_base": str(kept), "build_lib": str(fresh / "lib")},
        "bdist_wheel": {"bdist_dir": str(fresh / "wheel")},
        "egg_info": {"egg_base": str(fresh)},
    }


def build() -> dict:
    if os.environ.get("WORLDENV_NO_EXT"):  # an sdist compiles nothing, so it needs no torch
        return {"install_requires": [*DEPENDENCIES, "torch>=2.11"]}
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise SystemExit(f"torch {torch.__version__} is installed; worldenv is built against torch 2.11 or newer")
    # Exactly the torch built against: under a range pip may take the newest one, with gigabytes of CUDA.
    pin = "torch==" + torch.__version__.split("+")[0]
    return {"install_requires": [*DEPENDENCIES, pin], **compiled(torch)}


FRESH = tempfile.TemporaryDirectory(prefix="worldenv-build-")  # removed when this build ends
setup(
    options=folders(Path(FRESH.name)),
    packages=[*find_packages(include=["worldenv", "worldenv.*"]), "worldenv.kernels"],
    # kernels/ has no __init__.py: a top-level package of that name would shadow the one on PyPI.
    package_dir={"worldenv": "worldenv", "worldenv.kernels": "kernels/triton_ops"},
    **build(),
)
