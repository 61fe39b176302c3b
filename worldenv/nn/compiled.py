"""torch.compile of the large networks of released models, by one switch."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from worldenv.errors import UserError

# WORLDENV_COMPILE, read once at import: 1 compiles; 0, or nothing, does not.
SAID = os.environ.get("WORLDENV_COMPILE", "0")
if SAID not in ("0", "1"):
    raise UserError(f"WORLDENV_COMPILE is {SAID!r}; it should be 0 or 1, or not be set")
WANTED = SAID == "1"
COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++")


def why_not() -> str | None:
    """Why torch.compile cannot work here; None if nothing that it needs is missing."""
    if torch.cuda.is_available():
        return (
            None if importlib.util.find_spec("triton") else 'on a GPU it needs triton: pip install "worldenv[triton]"'
        )
    return None if any(map(shutil.which, COMPILERS)) else "on a CPU it needs a C++ compiler; install one"


def compile_if_wanted(*networks: nn.Module) -> None:
    """Let the networks compile themselves at their first call, where WORLDENV_COMPILE is 1; names and weights stay.

    Raises UserError where something that torch.compile needs is missing.
    """
    if not WANTED:
        return
    if reason := why_not():
        raise UserError(f"WORLDENV_COMPILE is 1: {reason}, or leave it unset")
    for network in networks:
        network.compile()
