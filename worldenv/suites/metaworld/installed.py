"""Which Meta-World is installed here, and what it lacks: found out before anything of it is imported."""

from worldenv.errors import UserError
from worldenv.suites import offscreen

INSTALL = 'pip install "worldenv[metaworld]"'


def installed() -> dict[str, str]:
    """The versions of Meta-World and MuJoCo, and the library that draws.

    Raises UserError, one line, if a package or library lacks, or if MuJoCo has another version.
    """
    found = {"package": f"metaworld {offscreen.version_of('metaworld')}", "mujoco": offscreen.version_of("mujoco")}
    if found["package"] == "metaworld ":
        raise UserError(f"Meta-World is not installed: {INSTALL}")
    if found["mujoco"] != offscreen.MUJOCO:
        has = f"mujoco {found['mujoco']} is" if found["mujoco"] else "no mujoco is"
        raise UserError(
            f"{has} installed, and Meta-World needs {offscreen.MUJOCO}: pip install mujoco=={offscreen.MUJOCO}"
        )
    return found | {"gl": offscreen.drawing_library("Meta-World")}
