"""The command on two processes, and the same by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worldenv.commands import cli
from worldenv.records.run_folder import RunFolder

ITERATIONS = 12
PYTHON = [sys.executable, "-P", "-m"]
SMALL = "--rl.starts 4 --rl.siblings 4 --engine.horizon 8 --eval.episodes 10 --eval.imagined 2 --eval.quality 2"
SMALL += f" --eval.videos 0 --rl.signal 0 --rl.iterations {ITERATIONS}"

MEASURED = ["--engine.horizon", "8", "--eval.episodes", "10", "--eval.imagined", "3", "--eval.quality", "2"]
MEASURED += ["--eval.videos", "1"]


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


class Commands:
    """The command on two ranks, by one launcher or by one for each rank, and its run folder."""

    def __init__(self, tiny, folder):
        self.run, self.said, self.folder = folder / "run", folder / "stderr", folder
        (folder / "models").mkdir()
        tiny.save(folder / "models")
        self.launched = []

    def launch(self, *launch, times=1):
        words = ["worldenv", "tabletop", "--models", self.folder / "models", "--run", self.run, *SMALL.split(), *launch]
        with open(self.said, "w") as err:
            for _ in range(times):
                self.launched.append(subprocess.Popen([*PYTHON, *map(str, words)], stderr=err, stdout=subprocess.PIPE))
        until = time.monotonic() + 300
        while not steps(self.run):
            assert time.monotonic() < until and self.launched[0].poll() is None, self.said.read_text()
            time.sleep(0.05)
        return self.launched

    def line(self):
        """The one line of this package."""
        text = self.said.read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("worldenv-train: ")]
        assert "Traceback" not in text
        return line


@pytest.fixture
def commands(tiny, tmp_path):
    made = Commands(tiny, tmp_path)
    yield made
    for command in made.launched:
        command.kill()


def test_killed_rank_ends_the_command_and_torchrun_resumes_the_run(commands):
    (command,), run = commands.launch("--launch.processes", "2"), commands.run
    os.kill(ranks_under(command.pid)["1"], signal.SIGKILL)
    assert command.wait(60) == 1 and command.stdout.read() == b""
    told = "2 ranks, 2 of them on this machine: each imagines at most 8 of the 16 episodes of an iteration; it needs"
    assert told in commands.said.read_text()
    line = commands.line()
    assert "rank 1 (" in line and line.endswith(f"continue with: worldenv-train --resume --run {run}"), line
    assert 0 < len(steps(run)) < ITERATIONS
    torchrun = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "worldenv"]
    words = ["train", "--resume", "--run", str(run)]
    # torchrun does not pass -P on: without this its ranks would import the clone's uncompiled package
    installed = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=600, env=installed)
    assert done.returncode == 0, done.stderr
    (result,) = done.stdout.splitlines()
    assert json.loads(result) == RunFolder(run).result() and steps(run) == list(range(ITERATIONS))
    assert json.loads(result)["success_after"]["n"] == 10


def test_evaluation_on_two_ranks_is_that_of_one_process(tiny, tmp_path, capsys):
    (tmp_path / "models").mkdir()
    tiny.save(tmp_path / "models")
    words = ["--models", str(tmp_path / "models"), *MEASURED]
    given = ["worldenv", "eval", *words, "--run", str(tmp_path / "two"), "--launch.processes", "2"]
    done = subprocess.run([*PYTHON, *given], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == RunFolder(tmp_path / "two").result() and len([*tmp_path.glob("two/videos/*.webp")]) == 1
    cli.evaluate([*words, "--run", str(tmp_path / "one")])
    one, two = json.loads(capsys.readouterr().out), json.loads(line)
    assert one["success"] == two["success"] and one["imagined_success"] == two["imagined_success"]
    assert two["world_model"]["psnr"] == pytest.approx(one["world_model"]["psnr"], abs=1e-3)


def test_sigterm_of_one_launcher_saves_and_ends_all_with_its_code(commands, port):
    address = f"127.0.0.1:{port}"
    first, other = commands.launch("--launch.nodes", "2", "--launch.address", address, "--launch.shard", times=2)
    first.send_signal(signal.SIGTERM)
    assert (first.wait(60), other.wait(60)) == (143, 143), commands.said.read_text()
    assert commands.line() == f"worldenv-train: terminated; continue with: worldenv-train --resume --run {commands.run}"
    assert (commands.run / "checkpoints" / "post_train.state.safetensors").exists()
    assert list(commands.run.glob("checkpoints/post_train.*.shards/*.safetensors"))
