"""Ray starts the ranks: the same run as without it, also if a worker is killed; what cannot begin is said."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from worldenv.commands import cli
from worldenv.commands.ranked import check_ranks
from worldenv.config import EvaluateConfig
from worldenv.errors import UserError
from worldenv.launch import on_ray
from worldenv.launch.config import LaunchConfig, RayConfig
from worldenv.launch.ranks import ALONE
from worldenv.launch.ray_rank import Said, Work
from worldenv.records.run_folder import RunFolder
from worldenv.terminal import Closed

ITERATIONS = 8
COMMAND = [sys.executable, "-P", "-m", "worldenv", "tabletop-quick", "--rl.iterations", str(ITERATIONS)]
COMMAND += ["--rl.signal", "0", "--precision", "float32", "--engine.horizon", "8"]
COMMAND += ["--eval.episodes", "10", "--eval.imagined", "2", "--eval.quality", "2", "--eval.videos", "0"]
ON_RAY = ["--launch.ray.workers", "2", "--launch.ray.resources-per-worker", "CPU=0.5", "--launch.ray.storage-path"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install "worldenv[ray]"')


def begin(run, *words):
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(run.with_suffix(".stderr"), "w") as said:  # no pipe: nobody reads it meanwhile
        given = {"stdout": subprocess.PIPE, "stderr": said, "text": True, "env": threads}
        return subprocess.Popen([*COMMAND, "--run", str(run), *map(str, words)], **given)


def end(command, run):
    """What the command has printed to stdout and to stderr."""
    out, _ = command.communicate(timeout=600)
    return out, run.with_suffix(".stderr").read_text()


def steps(run):
    return [line["step"] for line in RunFolder(run).metrics("post_train")] if (run / "config.json").exists() else []


def policy(run):
    return load_file(run / "checkpoints" / "policy.safetensors")


def largest_difference(one, other):
    return max((policy(one)[name] - policy(other)[name]).abs().max().item() for name in policy(one))


def below(parent):
    """All processes that a process has started, and that those have."""
    found = []
    for listed in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):  # some end meanwhile
            for child in listed.read_text().split():
                found += [int(child), *below(child)]
    return found


def workers_of(command):
    """The processes of the ranks that the Ray of a command has started."""
    found = []
    for child in below(command.pid):
        with suppress(OSError):  # as above
            found += [child] * (b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes())
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on two workers of Ray; stdout, stderr and the exit code of its command."""
    run = tmp_path_factory.mktemp("ray") / "undisturbed"
    command = begin(run, *ON_RAY, run.parent / "storage")
    return run, *end(command, run), command.returncode


@needs_ray
def test_workers_of_ray_do_what_processes_do(undisturbed, tmp_path):
    run, out, said, code = undisturbed
    assert code == 0, said
    assert out.count("\n") == 1 and RunFolder(run).result()["run"] == str(run)
    assert "2 ranks, 2 of them on this machine" in said and said.count("practising in imagination  8/8") == 1
    processes = begin(tmp_path / "processes", "--launch.processes", "2")
    assert end(processes, tmp_path / "processes") and processes.returncode == 0
    assert largest_difference(run, tmp_path / "processes") <= 1e-5


@needs_ray
def test_worker_that_is_killed_is_started_again_and_changes_nothing(undisturbed, tmp_path):
    run = tmp_path / "run"
    command = begin(run, *ON_RAY, tmp_path / "storage", "--launch.ray.max-failures", "1")
    until = time.monotonic() + 300
    while len(steps(run)) < 2:
        assert time.monotonic() < until and command.poll() is None, run.with_suffix(".stderr").read_text()
        time.sleep(0.05)
    os.kill(max(workers_of(command)), signal.SIGKILL)
    done = len(steps(run))
    out, said = end(command, run)
    assert command.returncode == 0, said
    assert done < ITERATIONS and steps(run) == list(range(ITERATIONS)) and out.count("\n") == 1
    assert said.count(f"worldenv-train: Ray has started the ranks again, and {run} goes on") == 1
    assert largest_difference(run, undisturbed[0]) == 0


@needs_ray
def test_wrong_use_that_a_worker_finds_is_said_once_and_not_tried_again(undisturbed, tmp_path):
    run, words = undisturbed[0], ["--launch.ray.max-failures", "1"]
    before = policy(run)
    command = begin(run, *ON_RAY, tmp_path / "storage", *words)
    out, said = end(command, run)
    assert (command.returncode, out) == (2, "")
    assert said.count("worldenv-train: ") == 1 and f"run folder {run} is not empty" in said and "Traceback" not in said
    assert all(torch.equal(before[name], tensor) for name, tensor in policy(run).items())


@needs_ray
def test_more_workers_than_the_cluster_has_room_for_are_refused(tmp_path):
    command = begin(tmp_path / "run", "--launch.ray.workers", "999")
    out, said = end(command, tmp_path / "run")
    assert (command.returncode, out) == (2, "") and not (tmp_path / "run").exists()
    line = r"worldenv-train: --launch.ray.workers is 999, each with CPU=1, and the Ray cluster has room for \d+: start"
    assert re.match(line, said) and len(said.splitlines()) == 1


def cluster(*nodes, free=1e9):
    listed = [{"Alive": True, "Resources": node} for node in nodes]
    return SimpleNamespace(nodes=lambda: listed, available_resources=lambda: {"CPU": free})


@pytest.mark.parametrize(
    ("ray", "message"),
    [
        (cluster({"CPU": 3.0}, {"CPU": 3.0}, {}), "each with CPU=2, and the Ray cluster has room for 2: start fewer"),
        (
            cluster({"CPU": 4.0}, {"CPU": 2.0}),
            "the Ray cluster has 2 machines: give a folder that they share, --launch",
        ),
        (cluster({"CPU": 6.0}, free=5.0), "and other jobs use too much of the Ray cluster: look at `ray status`"),
    ],
)
def test_cluster_that_cannot_run_all_workers_is_refused(ray, message, monkeypatch):
    monkeypatch.setattr(on_ray, "FREE_S", 0)
    with pytest.raises(UserError, match=message):
        on_ray._check_room(ray, RayConfig(workers=3), {"CPU": 2.0})


@pytest.mark.parametrize(("each", "workers"), [(0.2, 5), (0.1, 10), (0.5, 2)])
def test_parts_of_a_processor_fill_it(each, workers):
    on_ray._check_room(cluster({"CPU": 1.0}, free=1.0), RayConfig(workers=workers), {"CPU": each})
    with pytest.raises(UserError, match=f"has room for {workers}: start fewer"):
        on_ray._check_room(cluster({"CPU": 1.0}), RayConfig(workers=workers + 1), {"CPU": each})


class Lost(Exception):
    worker_failures = {1: OSError()}


@pytest.mark.parametrize(
    ("program", "failure", "line"),
    [
        (
            "worldenv-train",
            Lost("[Rank 1]\n..."),
            "rank 1 was lost or failed; continue with: worldenv-train --resume --run {run}",
        ),
        ("worldenv-eval", Lost("Traceback\n..."), "rank 1 was lost or failed"),
        ("worldenv-eval", OSError("Traceback\n  File\nPermissionError: x\n"), "PermissionError: x"),
    ],
)
def test_failure_that_ray_does_not_mend_is_one_line(program, failure, line, capsys, tmp_path):
    def fit():
        raise failure

    (tmp_path / "config.json").touch()
    said = Said()
    said.write("stderr", "before\n")
    remote = {name: SimpleNamespace(remote=getattr(said, name)) for name in ("take", "is_refused")}
    errors = {"train": SimpleNamespace(TrainingFailedError=Lost), "exceptions": SimpleNamespace(RayError=OSError)}
    ray, work = SimpleNamespace(get=lambda value: value, **errors), Work(cli.train, program, [], tmp_path)
    assert on_ray._followed(ray, fit, SimpleNamespace(**remote), work, sys.stdout) == 1
    assert capsys.readouterr() == ("", f"before\n{program}: Ray gave up: {line.format(run=tmp_path)}\n")


class Starting(Exception):
    def __init__(self, failure):
        self.controller_failure = failure


@pytest.mark.parametrize(
    ("left", "failures", "fits"),
    [
        (-1, [Starting(OSError())] * 3, 4),
        (2, [Starting(OSError())] * 2, 3),
        (1, [OSError()], 2),  # what leads the workers has died
        (2, [Starting(OSError())] * 3, None),
        (0, [Starting(OSError())], None),
        (-1, [Starting(ValueError())], None),  # no worker has died
        (-1, [Lost()], None),  # Ray has tried again as often as it may
    ],
)
def test_workers_that_die_while_ray_starts_them_are_started_again(left, failures, fits):
    tried, to_come = [], iter(failures)

    def trainer():
        def fit():
            tried.append(1)
            if failure := next(to_come, None):
                raise failure

        return SimpleNamespace(fit=fit)

    errors = {"train": SimpleNamespace(ControllerError=Starting), "exceptions": SimpleNamespace(RayActorError=OSError)}
    with nullcontext() if fits else pytest.raises((Starting, Lost)):
        on_ray._fit(SimpleNamespace(**errors), trainer, left)
    assert fits is None or len(tried) == fits


def test_result_that_stdout_does_not_take_is_named_and_the_code_says_so(capsys, tmp_path):
    said = Said()
    said.write("stdout", '{"run": "..."}')
    said.write("stdout", "\n")
    remote = {name: SimpleNamespace(remote=getattr(said, name)) for name in ("take", "is_refused")}
    errors = {"train": SimpleNamespace(TrainingFailedError=Lost), "exceptions": SimpleNamespace(RayError=OSError)}
    ray, work = SimpleNamespace(get=lambda value: value, **errors), Work(cli.train, "worldenv-train", [], tmp_path)
    done = lambda: said.write("stderr", "done\n")  # noqa: E731
    assert on_ray._followed(ray, done, SimpleNamespace(**remote), work, Closed()) == 1
    line = f"the result could not be printed to stdout (stdout is closed); it is in {tmp_path}/result.json"
    assert capsys.readouterr() == ("", f"done\nworldenv-train: {line}\n")


@pytest.mark.parametrize("is_there", [False, True])
def test_interruption_names_the_run_once_it_is_there(is_there, tmp_path):
    if is_there:
        (tmp_path / "config.json").touch()
    errors = SimpleNamespace(RayError=OSError)
    ray = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None, exceptions=errors)
    with pytest.raises(KeyboardInterrupt) as stop, on_ray._connected(ray, tmp_path):
        raise KeyboardInterrupt
    assert getattr(stop.value, "__notes__", []) == [str(tmp_path)] * is_there


def test_ray_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match="2"):
        cli.train(["tabletop-quick", "--launch.ray.workers", "2"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("worldenv-train: --launch.ray.workers needs Ray (")
    assert line.endswith('): pip install "worldenv[ray]"')


def test_ranks_of_torchrun_start_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="lets Ray start the ranks, and torchrun has started some: leave one out"):
        on_ray.start(None, RayConfig(workers=2), "cpu")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"workers": 2, "resources_per_worker": ("CPU",)}, "resources_per_worker has 'CPU'; it should be NAME=NUMBER"),
        ({"workers": 2, "resources_per_worker": ("CPU=-1",)}, "resources_per_worker has 'CPU=-1'"),
        ({"workers": 2, "resources_per_worker": ("CPU=nan",)}, "resources_per_worker has 'CPU=nan'"),
        ({"max_failures": 1}, "workers is 0, and other options of Ray are given"),
        ({"workers": 1, "max_failures": -2}, "max_failures is -2; it should be a whole number from -1 to"),
    ],
)
def test_options_of_ray_that_do_not_fit_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        RayConfig(**bad)


def test_ray_and_processes_exclude_each_other():
    assert LaunchConfig(ray=RayConfig(workers=3)).count == 3
    with pytest.raises(UserError, match="ray.workers is 2: Ray starts the ranks on its machines, so leave out"):
        LaunchConfig(processes=2, ray=RayConfig(workers=2))


def test_evaluation_is_not_started_again():
    launch = LaunchConfig(ray=RayConfig(workers=1, max_failures=1))
    with pytest.raises(UserError, match="--launch.ray.max-failures lets a run be resumed, and an evaluation is not"):
        check_ranks(EvaluateConfig(launch=launch), ALONE)


def test_resources_and_storage_are_as_ray_needs_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert RayConfig(2, ("CPU=2", "GPU=0.5")).resources == {"CPU": 2.0, "GPU": 0.5} and RayConfig().resources is None
    assert RayConfig(2, storage_path="x").storage == str(tmp_path / "x")
    assert RayConfig(2, storage_path="s3://x").storage == "s3://x" and RayConfig().storage is None
