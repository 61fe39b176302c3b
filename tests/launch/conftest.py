"""Ranks in tests: forked, so that they start in no time, and with a watch that counts faster."""

import multiprocessing
import os
import pickle
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from worldenv.errors import exit_code
from worldenv.launch import watch
from worldenv.launch.join import joined

SAID = re.compile(r"worldenv-train: |\w+(Error|Terminated|Interrupt): ")


@dataclass
class Job:
    """Forked ranks, each of which calls `work(ranks)`."""

    folder: Path
    processes: list

    def end(self, timeout_s: float = 180) -> list[int]:
        """The exit codes of all ranks; those that do not end are killed, and get None."""
        for process in self.processes:
            process.join(timeout_s)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def results(self) -> list:
        assert self.end() == [0] * len(self.processes), self.said()
        return [pickle.loads((self.folder / f"{rank}.result").read_bytes()) for rank in range(len(self.processes))]

    def said(self) -> list[str]:
        """The lines of this package that all ranks printed to stderr, without those of torch's sockets."""
        texts = [path.read_text() for path in sorted(self.folder.glob("*.stderr"))]
        return [line for text in texts for line in text.splitlines() if SAID.match(line)]


@pytest.fixture
def port() -> int:
    """One that is free."""
    return free_port()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(folder, rank, environment, work):
    with open(folder / f"{rank}.stderr", "w") as said:
        os.dup2(said.fileno(), 2)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update({name: str(value) for name, value in environment.items()})
    code = 0
    try:
        with joined("worldenv-train") as ranks:
            result = work(ranks)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
    except BaseException as error:
        code = exit_code(error)
        if not isinstance(error, SystemExit):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(code)


@pytest.fixture
def begin(tmp_path_factory, monkeypatch):
    """begin(count, work, ranks=None, **environment): start a job; `ranks`: only these of them."""
    monkeypatch.setattr(watch, "TICK_S", 0.2)
    begun = []

    def make(count, work, ranks=None, **environment) -> Job:
        folder, port = tmp_path_factory.mktemp("job"), free_port()
        given = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(target=_rank, args=(folder, rank, given | {"RANK": rank} | environment, work))
            for rank in (range(count) if ranks is None else ranks)
        ]
        for process in processes:
            process.start()
        begun.append(Job(folder, processes))
        return begun[-1]

    yield make
    for job in begun:
        job.end(0)
