"""Fair timing: rivals interleaved in one test on one thread, results as one JSON line at the end."""

import json
import statistics
import time

import pytest
import torch

RESULTS = pytest.StashKey[list]()
ROUND_S = 2e-3  # a round repeats the call until it lasts this long, so that the clock does not matter


def pytest_configure(config):
    config.stash[RESULTS] = []


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def write_gb_s():
    """The machine's measured peak for writing: 64 MB, in place, one thread.

    A result that fits a cache may exceed it; one in freshly mapped memory pays for page faults and stays far below.
    """
    buffer = torch.empty(1 << 24)
    buffer.zero_()
    return buffer.nbytes / min(_seconds(buffer.zero_, 3) for _ in range(10)) / 1e9


@pytest.fixture
def versus(request):
    """Time `new` against its rivals; returns and records seconds and ratios.

    Rounds run A B C C B A, so that a drift of the machine hits all alike, and the ratio is the median over rounds of
    rival / new. Each callable is called three times before, so that it is compiled and warm.
    """

    def run(new, rivals, rounds=20, **facts):
        calls = {"new": new, **rivals}
        repeats = {}
        for name, call in calls.items():
            _seconds(call, 3)
            repeats[name] = max(1, int(ROUND_S / _seconds(call, 1)))
        times = {name: [] for name in calls}
        for i in range(rounds):
            for name in list(calls) if i % 2 else reversed(calls):
                times[name].append(_seconds(calls[name], repeats[name]))
        median_s = {name: statistics.median(times[name]) for name in calls}
        ratio = {
            name: statistics.median(rival / new for rival, new in zip(times[name], times["new"], strict=True))
            for name in rivals
        }
        result = {"benchmark": request.node.name, "median_s": median_s, "speedup_over": ratio, **facts}
        request.config.stash[RESULTS].append(result)
        return result

    return run


def _seconds(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if config.stash[RESULTS]:
        machine = {"torch": torch.__version__, "cpu_isa": torch.backends.cpu.get_cpu_capability()}
        terminalreporter.write_line(json.dumps({"machine": machine, "results": config.stash[RESULTS]}))
