"""`emulated`: the CUDA kernels compiled for the emulator of emulator.h, so that they run where there is no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "csrc/cuda"
TYPES = {torch.float32: b"f", torch.bfloat16: b"b", torch.float16: b"h"}


class Emulated:
    """Calls functions of emulate.cpp with tensors and numbers."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))

    def __call__(self, name, dtype, int8, d, tensors, numbers, seed=0):
        """Raises RuntimeError with the emulator's message where the kernel breaks a rule."""
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
        if error := function(
            TYPES[dtype], int(int8), d, pointers, (ctypes.c_int64 * len(numbers))(*numbers), ctypes.c_uint(seed)
        ):
            raise RuntimeError(error.decode())


@pytest.fixture(scope="session")
def emulate(tmp_path_factory):
    """`emulate(old, new)`: the kernels on the emulator, with one piece of their source replaced: a seeded defect."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler is found")

    def build(old="", new=""):
        folder = tmp_path_factory.mktemp("emulated")
        for path in [*CUDA.glob("*.h"), *HERE.glob("emul*")]:
            inside = folder / path.relative_to(HERE.parents[1])
            inside.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8")
            inside.write_text(text.replace(old, new) if old and path.parent == CUDA else text, encoding="utf-8")
        assert sum(path.read_text(encoding="utf-8").count(old) for path in CUDA.glob("*.h")) == 1 or not old, old
        speed = ["-O1", "-DWORLDENV_EMULATE_FEW"] if old else ["-O2"]  # a defect shows in few calls
        command = [
            compiler,
            "-std=c++20",
            *speed,
            "-ffp-contract=off",
            "-fPIC",
            "-shared",
            "-DWORLDENV_EMULATE",
            "-w",
            f"-I{folder / 'tests/kernels'}",
            str(folder / "tests/kernels/emulate.cpp"),
            "-o",
            str(folder / "emulated.so"),
        ]
        subprocess.run(command, check=True)
        return Emulated(folder / "emulated.so")

    return build


@pytest.fixture(scope="session")
def emulated(emulate):
    return emulate()
