"""An installation that cannot work says in one line what is wrong with it and what to do."""

import os
import subprocess
import sys

import pytest

COMMANDS = {"train": "worldenv-train", "evaluate": "worldenv-eval", "info": "worldenv-info"}


def refusal(before, command):
    """What the command prints to stderr after the code `before` has broken something."""
    code = f"import sys\n{before}\nfrom worldenv.commands import cli\ncli.{command}([])"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_compiled_module_that_does_not_load_is_named_with_the_torch_that_is_there(command):
    before = "import torch\ntorch.__version__ = '2.10.0'\nsys.modules['worldenv._C'] = None"
    line = refusal(before, command)
    assert line.startswith(f"{COMMANDS[command]}: worldenv._C cannot be loaded with torch 2.10.0 (")
    assert "With torch 2.11 or newer, build it again: run `pip install" in line


def test_torch_that_the_module_was_built_against_is_named():
    before = (
        "from importlib import metadata\nsys.modules['worldenv._C'] = None\n"
        "metadata.requires = lambda name: ['numpy>=1.26', 'torch==2.12.9']"
    )
    assert " It was built against torch==2.12.9. " in refusal(before, "info")


def test_reason_of_several_lines_is_shown_in_one():
    before = (
        "import importlib.abc\n"
        "class Broken(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise ImportError('\\n\\nno C extensions:\\n * try again\\n')\n"
        "sys.meta_path.insert(0, Broken())"
    )
    assert refusal(before, "info") == "worldenv-info: no C extensions: * try again\n"


def test_unknown_backend_is_refused_in_one_line():
    line = refusal("import os; os.environ['WORLDENV_BACKEND'] = 'fastest'", "train")
    assert line.startswith("worldenv-train: WORLDENV_BACKEND is 'fastest'; it should be")


def test_info_needs_no_home_and_no_user_name():
    command = [sys.executable, "-P", "-c", "from worldenv.commands import cli; cli.info([])"]
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0 and ended.stderr == "" and "op adaln" in ended.stdout
