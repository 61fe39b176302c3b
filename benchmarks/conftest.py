"""Fair timing: rivals interleaved in one test on one thread. pytest-benchmark prints the table and writes the JSON."""

import statistics
import time
from datetime import datetime

import pytest
import torch
from document import commit, machine

RESULTS = pytest.StashKey[list]()
ROUND_S = 2e-3  # a round repeats the call until it lasts this long, so that the clock does not matter
ALL_S, LEAST_ROUNDS = 10.0, 4  # fewer rounds where all would last longer


def pytest_configure(config):
    config.stash[RESULTS] = []
    if not config.getoption("numprocesses", None):
        config.option.dist = "no"  # else pytest-benchmark takes --dist for several processes
    if not (config.getoption("benchmark_json") or config.getoption("benchmark_save")):
        # To .benchmarks/MACHINE/NUMBER_COMMIT_DATE.json, which no later run overwrites.
        config.option.benchmark_autosave = f"{str(commit()['id'])[:8]}_{datetime.now():%Y%m%d_%H%M%S}"
        config.option.benchmark_save_data = True


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["worldenv"] = machine()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def noted(request):
    """Every benchmark's facts, for the end of the terminal's report."""
    if "benchmark" in request.fixturenames:
        facts = request.getfixturevalue("benchmark").extra_info
        request.config.stash[RESULTS].append((request.node.name, facts))


@pytest.fixture(scope="session")
def write_gb_s():
    """The machine's measured peak for writing: 64 MB, in place, one thread.

    A result that fits a cache may exceed it; one in freshly mapped memory pays for page faults and stays far below.
    """
    buffer = torch.empty(1 << 24)
    buffer.zero_()
    return buffer.nbytes / min(_seconds(buffer.zero_, 3) for _ in range(10)) / 1e9


@pytest.fixture
def versus(benchmark):
    """Time `new` against its rivals; returns and records seconds, ratios and facts, in the JSON as extra_info.

    Rounds run A B C C B A, so that a drift of the machine hits all alike, and the ratio is the median over rounds of
    rival / new. Each callable is called three times before, so that it is compiled and warm. The table's row is `new`
    once more, alone.
    """

    def run(new, rivals, rounds=20, **facts):
        calls = {"new": new, **rivals}
        once = {name: (_seconds(call, 3), _seconds(call, 1))[1] for name, call in calls.items()}
        repeats = {name: max(1, int(ROUND_S / seconds)) for name, seconds in once.items()}
        rounds = max(min(rounds, LEAST_ROUNDS), min(rounds, int(ALL_S / sum(once.values()))))
        times = {name: [] for name in calls}
        for i in range(rounds):
            for name in list(calls) if i % 2 else reversed(calls):
                times[name].append(_seconds(calls[name], repeats[name]))
        median_s = {name: statistics.median(times[name]) for name in calls}
        ratio = {
            name: statistics.median(rival / new for rival, new in zip(times[name], times["new"], strict=True))
            for name in rivals
        }
        benchmark.pedantic(new, rounds=rounds, iterations=repeats["new"])
        benchmark.extra_info.update({"median_s": median_s, "speedup_over": ratio, **facts})
        return benchmark.extra_info

    return run


def _seconds(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if config.stash[RESULTS]:
        terminalreporter.section("how much faster than its rivals, and what else was found")
    for name, facts in filter(lambda result: result[1], config.stash[RESULTS]):
        ratios = [f"{ratio:.2f}x {rival}" for rival, ratio in facts.get("speedup_over", {}).items()]
        others = [f"{key} {value:.4g}" for key, value in facts.items() if isinstance(value, int | float)]
        terminalreporter.write_line(f"{name:<40} {'   '.join([*ratios, *others])}")
