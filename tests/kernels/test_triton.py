"""The Triton faces where there is no GPU: under Triton's interpreter, and compiled for three architectures.

Each needs a process of its own, since Triton chooses between them as a kernel is defined. The tests of a face are in
triton_ops/; on a CUDA device they run as they are.
"""

import inspect
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
if find_spec("worldenv.kernels") is None:
    pytest.skip("worldenv.kernels is there in an installed package only: pip install .", allow_module_level=True)

from worldenv import kernels  # noqa: E402

HERE = Path(__file__).parent
FILES = {path.stem for path in (HERE.parents[1] / "kernels/triton_ops").glob("*.py")} - {"__init__"}
SHARED_LIMIT_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a block, as CUDA's programming guide has them


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The two processes, by name; they run side by side. -P: with the package that the tests use."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    settings["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))  # what is cached is not compiled
    folder = HERE / "triton_ops"
    commands = {
        "interpreter": (
            ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--confcutdir", folder, folder],
            {"TRITON_INTERPRET": "1"},
        ),
        "compiler": ([HERE / "triton_offline.py", *map(str, SHARED_LIMIT_BYTES)], {}),
    }
    children = {
        name: subprocess.Popen(
            [sys.executable, "-P", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=settings | more,
        )
        for name, (command, more) in commands.items()
    }
    yield children
    for child in children.values():
        child.kill()


@pytest.fixture(scope="module")
def compiled(started):
    """What each kernel takes: one dict for every case of triton_offline.py, kernel and architecture."""
    printed, _ = started["compiler"].communicate(timeout=900)
    assert started["compiler"].returncode == 0, printed
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]  # others are warnings


@pytest.mark.parametrize("arch", SHARED_LIMIT_BYTES)
def test_every_kernel_fits_the_architecture_and_spills_nothing(compiled, arch):
    left_out = ("oversize", " of ones")
    kernels = [kernel for kernel in compiled if kernel["arch"] == arch and not kernel["case"].endswith(left_out)]
    for kernel in kernels:
        print(json.dumps(kernel))
    assert {kernel["case"].split()[0] for kernel in kernels} == FILES
    assert [kernel for kernel in kernels if kernel["spilled_bytes"]] == []
    assert [kernel for kernel in kernels if kernel["shared_bytes"] > SHARED_LIMIT_BYTES[arch]] == []


def test_sizes_of_1_compile_too(compiled):
    cases = {kernel["case"] for kernel in compiled}
    assert {f"{op} of ones" for op in FILES} <= cases


def test_kernel_that_needs_more_registers_than_there_are_is_found(compiled):
    (kernel,) = (kernel for kernel in compiled if kernel["case"] == "oversize")
    assert kernel["spilled_bytes"] > 0 and kernel["registers"] == 255


@pytest.mark.skipif(triton.__version__ < "3.7", reason="Triton 3.6 cannot interpret a loop together with numpy 2.4")
def test_every_face_equals_its_reference_under_the_interpreter(started):
    # A kernel that reads beyond its memory ends the process: no "passed", and a negative exit code.
    printed, _ = started["interpreter"].communicate(timeout=900)
    print(printed)
    assert started["interpreter"].returncode == 0, printed
    assert {path.stem.removeprefix("test_") for path in (HERE / "triton_ops").glob("test_*.py")} >= FILES


@pytest.fixture
def registered(monkeypatch):
    """What `register` does where CUDA C++ has the given ops: the ops that it registers, by dispatch key."""

    def run(has=()):
        made, keep = [], lambda launcher: launcher
        monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: op in has)
        monkeypatch.setattr(torch.library, "impl", lambda op, key: made.append((op, key)) or keep)
        monkeypatch.setattr(kernels, "RUNS", set())
        kernels.register()
        return made

    return run


def test_every_file_registers_its_op_for_cuda_tensors(registered):
    assert {op.removeprefix("worldenv::") for op, key in registered() if key == "CUDA"} == {*FILES, "adaln_backward"}
    assert {*FILES, "adaln_backward"} == kernels.RUNS


def test_op_that_cuda_cpp_has_is_left_to_it(registered):
    made = registered(has=["worldenv::rope_cache_write"])
    assert made and ("worldenv::rope_cache_write", "CUDA") not in made
    assert "rope_cache_write" not in kernels.RUNS and "windowed_attention" in kernels.RUNS


def test_launcher_takes_as_many_arguments_as_its_op_and_leaves_out_the_same(registered):
    registered()
    for op, launcher in kernels.FACES.items():
        schema = getattr(torch.ops.worldenv, op).default._schema
        wanted = [argument.has_default_value() for argument in schema.arguments]
        parameters = inspect.signature(launcher).parameters.values()
        assert [one.default is not inspect.Parameter.empty for one in parameters] == wanted


def test_face_runs_on_the_device_of_its_tensors_which_need_not_be_the_current_one(monkeypatch):
    current, tensor = [], torch.ones(2)

    @contextmanager
    def device_of(given):
        current.append(given)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(kernels, "FACES", {})
    kernels.face(lambda scale, given: (scale * given, [*current]))
    out, during = kernels.FACES["<lambda>"](3, tensor)
    assert out.tolist() == [3, 3] and during[0] is tensor and not current
