"""The command on two processes, and the same by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldenv.records.run_folder import RunFolder

ITERATIONS = 12
PYTHON = [sys.executable, "-P", "-m"]
SMALL = "--rl.starts 4 --rl.siblings 4 --engine.horizon 8 --eval.episodes 10 --eval.imagined 2 --eval.quality 2"
SMALL += f" --eval.videos 0 --rl.signal 0 --rl.iterations {ITERATIONS}"


def rank_of(process: Path) -> str | None:
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((text.decode()[5:] for text in variables if text.startswith(b"RANK=")), None)


def ranks_under(parent: int) -> dict[str, int]:
    """The process of each rank that a launcher has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {rank: int(child) for child in children if (rank := rank_of(Path("/proc", child))) is not None}


def steps(run):
    return [line["step"] for line in RunFolder(run).metrics("post_train")] if (run / "config.json").exists() else []


@pytest.fixture
def begun(tiny, tmp_path):
    """A command on two ranks that practises, and its run folder."""
    (models := tmp_path / "models").mkdir()
    tiny.save(models)
    run, said = tmp_path / "run", tmp_path / "stderr"
    words = ["worldenv", "tabletop", "--models", models, "--run", run, "--launch.processes", "2", *SMALL.split()]
    with open(said, "w") as err:
        command = subprocess.Popen([*PYTHON, *map(str, words)], stderr=err, stdout=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not steps(run):
            assert time.monotonic() < until and command.poll() is None, said.read_text()
            time.sleep(0.05)
        yield command, run, said
    finally:
        command.kill()


def test_killed_rank_ends_the_command_and_torchrun_resumes_the_run(begun):
    command, run, said = begun
    os.kill(ranks_under(command.pid)["1"], signal.SIGKILL)
    assert command.wait(60) == 1 and command.stdout.read() == b""
    text = said.read_text()
    assert "2 ranks, 2 of them on this machine: each imagines at most 8 of the 16 episodes of an iteration" in text
    (line,) = [line for line in text.splitlines() if line.startswith("worldenv-train: ")]
    assert "rank 1 (" in line and line.endswith(f"continue with: worldenv-train --resume --run {run}"), line
    assert "Traceback" not in text and 0 < len(steps(run)) < ITERATIONS
    torchrun = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "worldenv", "train"]
    done = subprocess.run([*torchrun, "--resume", "--run", str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (result,) = done.stdout.splitlines()
    assert json.loads(result) == RunFolder(run).result() and steps(run) == list(range(ITERATIONS))
    assert json.loads(result)["success_after"]["n"] == 10


def test_sigterm_of_the_command_saves_and_ends_it_with_its_code(begun):
    command, run, said = begun
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 143
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("worldenv-train: ")]
    assert line == f"worldenv-train: terminated; continue with: worldenv-train --resume --run {run}"
    assert (run / "checkpoints" / "post_train.state.safetensors").exists()
