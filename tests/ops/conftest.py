import os
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def at_level(tmp_path):
    """`at_level(level, op, *arguments)`: what an op gives in a process that takes a lower instruction set."""

    def run(level, op, *arguments):
        torch.save(arguments, tmp_path / "in.pt")
        code = (
            f"import torch; from worldenv.ops.{op} import {op}; "
            f"given = torch.load({str(tmp_path / 'in.pt')!r}, weights_only=False); "
            f"torch.save({op}(*given), {str(tmp_path / 'out.pt')!r})"
        )
        # -P: the package that the tests use, not the one in the folder where they run.
        command = [sys.executable, "-P", "-c", code]
        subprocess.run(command, check=True, env={**os.environ, "WORLDENV_CPU_ISA": level})
        return torch.load(tmp_path / "out.pt")

    return run
