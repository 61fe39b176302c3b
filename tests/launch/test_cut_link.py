"""Two machines, each a network namespace: when the link between them is cut, a job ends on both, and can be resumed."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worldenv.records.run_folder import RunFolder

ITERATIONS, LIMIT_S = 12, 300
CUT_S = 60  # until the commands end once the link is cut: 28 s, and torch's store would wait for minutes
SMALL = "--rl.starts 4 --rl.siblings 4 --engine.horizon 8 --eval.episodes 10 --eval.imagined 2 --eval.quality 2"
SMALL += f" --eval.videos 0 --rl.signal 0 --precision float32 --rl.iterations {ITERATIONS}"
HOSTS = {"first": "10.213.7.1", "other": "10.213.7.2"}
ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'  # in namespaces of its own


class Machines:
    """Two machines with a link between them, which see the same files."""

    def __init__(self, folder: Path):
        self.files, self.spaces = folder / "hosts", {name: f"worldenv-{os.getpid()}-{name}" for name in HOSTS}
        lines = [f"{address} {name}" for name, address in HOSTS.items()]
        self.files.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    def __enter__(self):
        first, other = self.spaces.values()
        for space in (first, other):
            ip("netns", "add", space)
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", other)
        for name, space in self.spaces.items():
            ip("-n", space, "address", "add", f"{HOSTS[name]}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_):
        for space in self.spaces.values():
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)

    def link(self, state):
        ip("-n", self.spaces["other"], "link", "set", "eth0", state)

    def on(self, name, command, **given):
        """A command that runs on one of the machines."""
        inside = ["unshare", "--uts", "--mount", "sh", "-c", ENTER, name, self.files, *command]
        return subprocess.Popen([*map(str, ["ip", "netns", "exec", self.spaces[name], *inside])], **given)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines(tmp_path):
    try:
        made = Machines(tmp_path)
        with made:
            assert made.on("first", ["true"], stderr=subprocess.PIPE, text=True).wait() == 0
            yield made
    except FileNotFoundError as error:
        pytest.skip(f"network namespaces need the command ip (iproute2): {error}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")


class Job:
    """The command on both machines, each with one rank."""

    def __init__(self, machines, folder, port, *words):
        words = ["-P", "-m", "worldenv", *words, "--launch.nodes", "2", "--launch.address", f"first:{port}"]
        self.said, self.launched = [folder / f"{name}.stderr" for name in HOSTS], []
        for name, said in zip(HOSTS, self.said, strict=True):
            with open(said, "w") as err:
                given = {"stdout": subprocess.PIPE, "stderr": err, "text": True}
                self.launched.append(machines.on(name, [sys.executable, *map(str, words)], **given))

    def codes(self, limit_s=LIMIT_S):
        """Their exit codes; None for one that does not end in time, which is killed."""
        until = time.monotonic() + limit_s
        for command in self.launched:
            with suppress(subprocess.TimeoutExpired):
                command.wait(max(0.1, until - time.monotonic()))
        codes = [command.poll() for command in self.launched]
        for command in self.launched:
            command.kill()
        return codes

    def lines(self):
        """What this package says on each machine when it ends."""
        texts = [said.read_text() for said in self.said]
        assert not any("Traceback" in text for text in texts), texts
        return [[line for line in text.splitlines() if line.startswith("worldenv-train: ")] for text in texts]


def steps(run):
    return [line["step"] for line in RunFolder(run).metrics("post_train")] if (run / "config.json").exists() else []


def outcome(run):
    folder = RunFolder(run)
    lines = [{k: v for k, v in line.items() if not k.endswith("_s")} for line in folder.metrics("post_train")]
    return load_file(run / "checkpoints" / "policy.safetensors"), lines, folder.result()["success_after"]


def test_cut_link_ends_both_machines_and_the_run_resumes_to_the_same_result(machines, tiny, tmp_path, port):
    (tmp_path / "models").mkdir()
    tiny.save(tmp_path / "models")
    words = ["tabletop", "--models", tmp_path / "models", *SMALL.split(), "--run"]
    whole = Job(machines, tmp_path, port, *words, tmp_path / "whole")
    assert whole.codes() == [0, 0], whole.lines()

    run = tmp_path / "run"
    cut = Job(machines, tmp_path, port, *words, run)
    until = time.monotonic() + LIMIT_S
    while len(steps(run)) < 2:
        assert time.monotonic() < until and cut.launched[0].poll() is None, cut.lines()
        time.sleep(0.02)
    machines.link("down")
    assert cut.codes(CUT_S) == [1, 1], cut.lines()
    assert 0 < len(steps(run)) < ITERATIONS
    (first,), (other,) = cut.lines()
    advice = f"; continue with: worldenv-train --resume --run {run}"
    assert first.startswith("worldenv-train: rank 1 (other, process ") and first.endswith(advice)
    assert other.startswith("worldenv-train: rank 0 (first, process ") and other.endswith(advice)

    machines.link("up")
    resumed = Job(machines, tmp_path, port, "--resume", "--run", run)
    assert resumed.codes() == [0, 0], resumed.lines()
    printed, nothing = [command.stdout.read() for command in resumed.launched]
    assert json.loads(printed) == RunFolder(run).result() and not nothing
    (one, *figures), (another, *same) = outcome(run), outcome(tmp_path / "whole")
    assert figures == same and len(figures[0]) == ITERATIONS
    assert all(torch.equal(one[name], tensor) for name, tensor in another.items())
