"""A job of several ranks ends on all of them, soon and with one line, when one is lost, fails, or does not fit."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from worldenv.commands.ranked import check_ranks, opened_by
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import Terminated, UserError, exit_code
from worldenv.launch import join, watch
from worldenv.launch import ranks as ranks_module
from worldenv.launch.config import LaunchConfig
from worldenv.records.run_folder import RunFolder
from worldenv.rollout.memory import free_bytes
from worldenv.rollout.parallel import CPU

NAME = r"rank {} \(.+, process \d+\)"


def exchange_for_ever(ranks):
    while True:
        ranks.every(None)
        (job_folder() / f"{ranks.rank}.turn").touch()
        time.sleep(0.02)


def job_folder():
    return Path(os.environ["JOB"])


@pytest.fixture
def at_work(begin, tmp_path):
    """A job of two ranks that exchange something for ever."""
    job = begin(2, exchange_for_ever, JOB=tmp_path)
    until = time.monotonic() + 60
    while not all((tmp_path / f"{rank}.turn").exists() for rank in range(2)):
        assert time.monotonic() < until, job.said()
        time.sleep(0.05)
    return job


@pytest.mark.parametrize(
    ("victim", "blow", "line"),
    [
        (1, signal.SIGKILL, NAME.format(1) + " died, hangs or lost the network: no sign of life for [12] s"),
        (0, signal.SIGKILL, NAME.format(0) + " or its machine is gone: .+"),
        (1, signal.SIGSTOP, NAME.format(1) + " died, hangs or lost the network: no sign of life for 2 s"),
        (0, signal.SIGSTOP, NAME.format(0) + " or its machine hangs or lost the network: no answer for 2 s"),
    ],
)
def test_rank_that_dies_or_hangs_ends_the_other_and_is_named(monkeypatch, request, victim, blow, line):
    monkeypatch.setattr(watch, "SILENT", 8 if blow == signal.SIGSTOP else 20)  # a death is noticed long before
    job = request.getfixturevalue("at_work")
    os.kill(job.processes[victim].pid, blow)
    job.processes[1 - victim].join(60)
    assert job.processes[1 - victim].exitcode == 1, job.said()
    (said,) = job.said()
    assert re.fullmatch(f"worldenv-train: {line}", said), said


def test_dead_rank_is_named_where_the_watch_is_slow(monkeypatch, request):
    def slow(rank):
        time.sleep(0.3)  # in each look, which then takes more than two ticks
        return f"beat/{rank}"

    monkeypatch.setattr(watch, "beat_of", slow)
    job = request.getfixturevalue("at_work")
    os.kill(job.processes[1].pid, signal.SIGKILL)
    job.processes[0].join(60)
    (said,) = job.said()
    assert re.match(f"worldenv-train: {NAME.format(1)} died, hangs or lost the network", said), said


def test_rank_that_dies_before_the_group_is_made_is_named(begin, monkeypatch):
    made = join.distributed.init_process_group

    def die(*given, **named):
        if os.environ["RANK"] == "1":
            os._exit(9)
        made(*given, **named)

    monkeypatch.setattr(watch, "SILENT", 8)
    monkeypatch.setattr(join.distributed, "init_process_group", die)
    job = begin(2, lambda ranks: None)
    assert job.end() == [1, 9]
    (said,) = job.said()
    assert re.fullmatch(f"worldenv-train: {NAME.format(1)} died, hangs or lost the network: .+", said), said


def test_ranks_that_do_not_reach_each_other_are_told_what_to_set(begin, monkeypatch):
    def fail(*given, **named):
        if os.environ["RANK"] == "1":
            raise RuntimeError("Connection refused, remote=[127.0.1.1]:24469\nException raised from ...")
        time.sleep(60)  # rank 0 waits for it

    monkeypatch.setattr(join.distributed, "init_process_group", fail)
    job = begin(2, lambda ranks: None)
    assert job.end() == [2, 2]
    (said,) = job.said()
    line = (
        r"the ranks cannot connect to each other \(Connection refused, remote=\[127.0.1.1\]:24469\): a machine may know"
    )
    assert re.match(f"UserError: {NAME.format(1)}: {line}", said), said


def test_error_of_one_rank_ends_all_with_its_message(begin):
    def work(ranks):
        ranks.every(None)
        if ranks.rank == 1:
            raise UserError("the disk is full")
        ranks.every(None)

    job = begin(3, work)
    assert job.end() == [2, 2, 2]
    (said,) = job.said()
    assert re.fullmatch(f"UserError: {NAME.format(1)}: the disk is full", said)


@pytest.mark.parametrize("end", [watch.Watch.end, lambda one: one.leave(OSError())])
def test_no_thread_asks_the_store_any_more_once_a_job_has_ended(monkeypatch, end):
    """C++ aborts a process that ends meanwhile."""
    monkeypatch.setattr(watch, "TICK_S", 0.05)
    monkeypatch.setattr(watch, "SILENT", 100)
    asked, threads = threading.Event(), threading.active_count()

    def add(*_):
        asked.set()
        time.sleep(0.5)

    known = {"check": lambda keys: False, "multi_get": lambda keys: [b""] * len(keys)}
    store = SimpleNamespace(add=add, compare_set=lambda key, old, mine: mine.encode(), **known)
    one = watch.Watch(store, 1, ["rank 0", "rank 1"], "worldenv-train")
    one.begin()
    assert asked.wait(5) and threading.active_count() == threads + 2
    end(one)
    assert threading.active_count() == threads


TWO_RANKS = """
import os, sys, time
from worldenv.launch.join import joined

os.environ["RANK"] = str(int(os.fork() == 0))

def learn(ranks):
    import torch
    from worldenv.launch.shards import sharded_copy
    policy = torch.nn.Module()
    policy.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    policy = sharded_copy(policy, ranks) if sys.argv[1] == "sharded" else policy
    policy.layers[0](torch.ones(2, 4)).sum().backward()
    torch.optim.Adam(policy.parameters()).step()  # imports what may keep the group for ever

with joined("worldenv-train") as ranks:
    learn(ranks)
until = time.monotonic() + 10
while "gloo" in (threads := os.popen(f"cat /proc/{os.getpid()}/task/*/comm 2>&1").read()):
    if time.monotonic() > until:  # Linux lists a thread that has ended for a moment longer, but not for so long
        break
os.write(1, " ".join([os.environ["RANK"], *threads.split(), "\\n"]).encode())  # at once: both write to one pipe
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads")
@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_no_thread_of_gloo_lives_once_a_job_has_ended(port, how):
    """One that still releases a tensor when Python ends makes C++ abort the process."""
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-P", "-c", TWO_RANKS, how]
    found = subprocess.run(command, env=os.environ | job, capture_output=True, text=True, timeout=120)
    assert {line[0] for line in found.stdout.splitlines()} == {"0", "1"}, found.stderr
    assert "gloo" not in found.stdout


def test_slow_rank_is_waited_for(begin, monkeypatch):
    monkeypatch.setattr(watch, "SILENT", 10)

    def work(ranks):
        time.sleep(3 * ranks.rank)  # longer than a rank may be silent
        return ranks.every(ranks.rank)

    assert begin(2, work).results() == [[0, 1]] * 2


def test_what_rank_0_has_others_get_in_order(begin):
    def work(ranks):
        dealt = ranks.dealt("0123456789" if ranks.first else "")
        return ranks.from_first(ranks.rank + 7), ranks.to_first("abc"[ranks.rank]), ranks.part(10), dealt

    parts = [(slice(0, 3), "012"), (slice(3, 6), "345"), (slice(6, 10), "6789")]
    kept = [["a", "b", "c"], None, None]
    assert begin(3, work).results() == [(7, letters, *part) for letters, part in zip(kept, parts, strict=True)]


def test_rows_of_all_ranks_are_gathered_of_every_kind(begin):
    def work(ranks):
        rows = 2 * ranks.rank  # rank 0 has none
        bytes_, flags = torch.full((rows, 2, 3), ranks.rank, dtype=torch.uint8), torch.ones(rows, dtype=torch.bool)
        return [one.tolist() for one in ranks.gather(bytes_[:, :, 0], flags, torch.arange(rows), torch.rand(rows, 0))]

    numbers = [[1, 1]] * 2 + [[2, 2]] * 4
    assert begin(3, work).results() == [[numbers, [True] * 6, [0, 1, 0, 1, 2, 3], [[]] * 6]] * 3


def test_rank_that_does_not_come_is_named(begin, monkeypatch):
    monkeypatch.setattr(join, "JOIN_S", 3.0)
    job = begin(3, lambda ranks: None, ranks=[0, 1])
    assert job.end() == [2, 2]
    assert job.said() == [
        "UserError: 1 of 3 ranks did not start within 3 s: 2; start all ranks, and look for an error in the output of "
        "the missing ones"
    ]


def test_rank_without_rank_0_says_where_it_looked(begin, monkeypatch):
    monkeypatch.setattr(join, "JOIN_S", 1.0)
    job = begin(2, lambda ranks: None, ranks=[1])
    assert job.end() == [2]
    assert re.search(r"rank 1 finds no rank 0 at 127.0.0.1:\d+ within 1 s: start all ranks", job.said()[-1])


def test_port_that_is_taken_is_named(begin, monkeypatch):
    monkeypatch.setattr(join, "JOIN_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        job = begin(2, lambda ranks: None, MASTER_PORT=port)
        assert job.end() == [2, 2]
    said = "\n".join(job.said())
    assert re.search(rf"rank 0 cannot listen on port {port} \(.*\): choose another MASTER_PORT", said)


def test_ranks_of_other_versions_are_named(begin, monkeypatch):
    monkeypatch.setattr(join, "_versions", lambda: {"worldenv": f"0.{os.environ['RANK']}"})
    job = begin(2, lambda ranks: None)
    assert job.end() == [2, 2]
    (said,) = job.said()
    assert re.search(r"rank 1 \(.*\) has worldenv 0.1, rank 0 \(.*\) has 0.0; install the same version", said)


def test_ranks_with_other_options_are_named(begin):
    def work(ranks):
        check_ranks(replace(TrainConfig(), rl=replace(TrainConfig().rl, clip=0.1 + 0.1 * ranks.rank)), ranks)

    job = begin(2, work)
    assert job.end() == [2, 2]
    assert job.said() == ["UserError: rank 1 has --rl.clip 0.2, rank 0 has 0.1; give all ranks the same options"]


def test_run_folder_that_a_rank_does_not_see_is_named(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "SEEN_S", 0.3)

    def work(ranks, blind=1):
        if ranks.rank == blind:
            monkeypatch.setattr(Path, "exists", lambda path: False)
        return str(opened_by(ranks, lambda: RunFolder.create(tmp_path / f"run{blind}", {})).path)

    job = begin(2, work)
    assert job.end() == [2, 2]
    (said,) = job.said()
    assert re.search(rf"run folder .*run1 is not shared: {NAME.format(1)} cannot see it; choose another --run", said)
    assert begin(2, lambda ranks: work(ranks, 9)).results() == [str(tmp_path / "run9")] * 2
    assert not list((tmp_path / "run9").glob(".ranks*"))


def test_file_of_rank_0_that_a_rank_does_not_see_is_named(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "SEEN_S", 0.3)

    def work(ranks, blind=1):
        if ranks.rank == blind:
            monkeypatch.setattr(Path, "exists", lambda path: False)
        ranks.wait_for(tmp_path)

    job = begin(2, work)
    assert job.end() == [2, 2]
    (said,) = job.said()
    assert re.search(rf"{NAME.format(1)} cannot see {tmp_path}, which rank 0 has made: see to it that", said)
    begin(2, lambda ranks: work(ranks, 9)).results()


@pytest.mark.parametrize("config", [TrainConfig, EvaluateConfig])
def test_other_number_of_ranks_than_was_asked_for_is_refused(config):
    asked = config(launch=LaunchConfig(processes=3))
    with pytest.raises(UserError, match="--launch asks for 3 ranks, but 2 were started"):
        check_ranks(asked, ranks_module.Ranks(0, 2))
    check_ranks(asked, ranks_module.ALONE)


def test_evaluation_shares_out_no_policy():
    with pytest.raises(UserError, match="--launch.shard shares a policy out while it learns, and an evaluation does"):
        check_ranks(EvaluateConfig(launch=LaunchConfig(shard=True)), ranks_module.Ranks(0, 2))


def test_one_process_has_nobody_to_share_a_policy_with():
    with pytest.raises(UserError, match="--launch.shard shares a policy out to several ranks, and there is one"):
        check_ranks(TrainConfig(launch=LaunchConfig(shard=True)), ranks_module.ALONE)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "the environment variable RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "the environment variable RANK is 2; it should be below WORLD_SIZE, 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "the environment variable MASTER_PORT is not set"),
    ],
)
def test_environment_that_is_not_whole_is_refused(monkeypatch, environment, message):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)), join.joined("worldenv-train"):
        pass


def test_ranks_of_a_machine_share_its_memory_and_processors(monkeypatch):
    from worldenv.launch.share import own_cpus, ranks_here

    whole = free_bytes(CPU)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    assert own_cpus() == 7 and ranks_here() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert own_cpus() == 7  # left over: no job of several
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert own_cpus() == 2 and ranks_here() == 3
    assert free_bytes(CPU) < whole / 2


def test_machines_need_an_address(monkeypatch):
    assert LaunchConfig(processes=2, nodes=3, address="first:29500").count == 6
    for wrong in (None, "first", "first:", ":29500"):
        with pytest.raises(UserError, match="with several nodes it should be HOST:PORT"):
            LaunchConfig(nodes=2, address=wrong)


LAUNCHER = """
import subprocess, sys, time
from worldenv.launch import start
start.LOOK_S, start.LEAVE_S = 0.05, 0.2
children = [subprocess.Popen(["sh", "-c", code], start_new_session=session) for code, session in {}]
start.threading.Thread(target=start._end_after_ranks, daemon=True).start()
time.sleep({})
sys.exit(40)
"""


@pytest.mark.parametrize(
    ("children", "ends_s", "code"),
    [
        ([("exit 7", True), ("sleep 0.5; exit 7", True)], 60, 7),
        ([("exit 7", True), ("sleep 9", True)], 1.5, 40),  # the agent waits for this one, or kills it
        ([("exit 7", False), ("sleep 9", True)], 1.5, 40),  # no rank
        ([("exit 8", False), ("exit 7", True)], 60, 7),
    ],
)
def test_launcher_that_its_agent_holds_up_ends_when_all_its_ranks_have(children, ends_s, code):
    if not any(Path("/proc/self/task").glob("*/children")):
        pytest.skip("this kernel does not list the children of a process")
    assert subprocess.run([sys.executable, "-P", "-c", LAUNCHER.format(children, ends_s)]).returncode == code


KEPT_ALIVE = """
import atexit, sys
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.launcher import api
from worldenv.launch import start
from worldenv.launch.config import LaunchConfig
def fail(*_):
    raise SignalException("asked to end", 15)
api.elastic_launch = lambda *_: fail
start.LEAVE_S = 0.0
atexit.register(print, "the interpreter ends")
print("said before")
sys.exit(start.start(["train"], LaunchConfig(nodes={}, processes=2, address="localhost:1")))
"""


@pytest.mark.parametrize(("nodes", "more"), [(1, "the interpreter ends\n"), (2, "")])
def test_launcher_of_one_of_several_machines_does_not_wait_for_the_threads_of_its_agent(nodes, more):
    done = subprocess.run([sys.executable, "-P", "-c", KEPT_ALIVE.format(nodes)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, f"said before\n{more}"), done.stderr


def test_exit_codes_are_those_of_the_page():
    errors = [UserError(), ImportError(), OSError(), KeyboardInterrupt(), Terminated(), SystemExit(5), SystemExit()]
    assert [exit_code(error) for error in errors] == [2, 2, 1, 130, 143, 5, 0]
