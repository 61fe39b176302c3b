"""Wheel and sdist hold what the tree holds now, whatever earlier builds left in it. Nothing is compiled here."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[1]
GONE = ("worldenv/gone.py", "worldenv/records/gone.py", "kernels/triton_ops/gone.py", "worldenv/assets/gone.json")
STALE = ("build/lib/worldenv/gone.py", f"build/bdist.linux-{os.uname().machine}/wheel/worldenv/gone.py")
COMPILED = ("worldenv/_C.abi3.so", "worldenv/_tabletop.cpython-310-x86_64-linux-gnu.so")  # of another build


@pytest.fixture
def tree(tmp_path):
    """What a build reads, in a folder of its own."""
    folder = tmp_path / "tree"
    for name in ("worldenv", "kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(kind, tree, before=""):
    """The archive that the project's own backend builds, in a folder of its own; `before` is code to run first."""
    out = tree.parent / f"{kind}-{len(list(tree.parent.iterdir()))}"
    code = f"{before}\nimport worldenv_build\nprint(worldenv_build.build_{kind}({str(out)!r}))"
    environment = os.environ | {"WORLDENV_NO_EXT": "1", "PYTHONPATH": str(tree / "csrc/build_tools")}
    command = [sys.executable, "-P", "-B", "-c", code]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def wheel(tree, before=""):
    """Names in the wheel, without its metadata."""
    with zipfile.ZipFile(build("wheel", tree, before)) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def belongs_in_the_wheel(tree):
    modules = {str(path.relative_to(tree)) for path in tree.glob("worldenv/**/*.py")}
    kernels = {f"worldenv/kernels/{path.name}" for path in tree.glob("kernels/triton_ops/*.py")}
    assets = {str(path.relative_to(tree)) for path in tree.glob("worldenv/assets/**/*.*")}
    return modules | kernels | assets


def write(tree, names):
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")


def test_what_was_removed_from_the_tree_is_not_in_the_next_wheel(tree):
    write(tree, GONE)
    first = wheel(tree)
    assert first == belongs_in_the_wheel(tree) and {"worldenv/gone.py", "worldenv/kernels/gone.py"} <= first
    for name in GONE:
        (tree / name).unlink()
    assert wheel(tree) == belongs_in_the_wheel(tree) == {name for name in first if "gone" not in name}


def test_wheel_takes_nothing_that_other_builds_left_in_the_tree(tree):
    write(tree, (*STALE, *COMPILED))
    assert wheel(tree) == belongs_in_the_wheel(tree)


def test_sdist_takes_nothing_that_other_builds_left_and_makes_the_same_wheel(tree):
    write(tree, ("notes.txt", *STALE, *COMPILED, "worldenv.egg-info/SOURCES.txt"))
    (tree / "worldenv.egg-info/SOURCES.txt").write_text("notes.txt\n")
    with tarfile.open(build("sdist", tree)) as file:
        file.extractall(tree.parent, filter="data")
    (unpacked,) = tree.parent.glob("worldenv-*")
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
    assert not {"notes.txt", "build", *COMPILED} & names
    assert {"csrc/ops.cpp", "csrc/build_tools/worldenv_build.py", "worldenv/assets/tabletop/policy.md"} <= names
    assert wheel(unpacked) == belongs_in_the_wheel(tree)


def test_tree_that_cannot_be_written_is_built_and_left_as_it_is(tree):
    before = sorted(tree.rglob("*"))
    wheel(tree, "import os; os.access = lambda path, mode: mode != os.W_OK")
    assert sorted(tree.rglob("*")) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the flag is for Linux")
def test_a_module_with_a_libstdcxx_of_its_own_prints_numbers_beside_torch(tmp_path):
    setup = ast.parse((ROOT / "setup.py").read_text())
    flags = next(x.value.body for x in setup.body if isinstance(x, ast.Assign) and x.targets[0].id == "LINK_FLAGS")
    (tmp_path / "print.cpp").write_text(
        '#include <sstream>\nextern "C" int digits(long x) { std::ostringstream s; s << x; return s.str().size(); }\n'
    )
    build = ["g++", "-shared", "-fPIC", "-static-libstdc++", "print.cpp", "-o", "print.so", *ast.literal_eval(flags)]
    subprocess.run(build, cwd=tmp_path, check=True)
    code = "import torch, ctypes; print(ctypes.CDLL('./print.so').digits(12345))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "5", run.stderr
