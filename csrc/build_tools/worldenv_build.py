"""PEP 517 build backend: setuptools, building against the torch that is already installed.

pip builds in an isolated environment, where a static torch requirement would download a second torch, possibly
another one than the package then runs with. So torch is asked for only where the environment has none.
"""

import os
import sys
import sysconfig
from importlib.metadata import distributions
from importlib.util import find_spec

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that need no torch

TORCH_PIN = "torch==2.13.0"


def _site_folders() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _torch_is_outside() -> bool:
    return any((dist.metadata["Name"] or "").lower() == "torch" for dist in distributions(path=_site_folders()))


def _expose_torch() -> None:
    if find_spec("torch") is None and _torch_is_outside():
        sys.path.extend(folder for folder in _site_folders() if folder not in sys.path)


def get_requires_for_build_wheel(config_settings=None):
    if find_spec("torch") is not None or _torch_is_outside():
        return []
    return [TORCH_PIN, "numpy>=1.26"]


def get_requires_for_build_sdist(config_settings=None):
    return []


def build_wheel(*args, **kwargs):
    _expose_torch()
    return build_meta.build_wheel(*args, **kwargs)


def build_editable(*args, **kwargs):
    _expose_torch()
    return build_meta.build_editable(*args, **kwargs)


def prepare_metadata_for_build_wheel(*args, **kwargs):
    _expose_torch()
    return build_meta.prepare_metadata_for_build_wheel(*args, **kwargs)


def prepare_metadata_for_build_editable(*args, **kwargs):
    _expose_torch()
    return build_meta.prepare_metadata_for_build_editable(*args, **kwargs)


def build_sdist(*args, **kwargs):
    os.environ["WORLDENV_NO_EXT"] = "1"
    return build_meta.build_sdist(*args, **kwargs)


get_requires_for_build_editable = get_requires_for_build_wheel
