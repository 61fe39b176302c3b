"""Kills of one worker of Ray at any moment: Ray starts the ranks again, and the run ends like an undisturbed one.

    python -P tests/fuzz/ray_kills.py --kills 20 --seed 0

A run is killed up to EACH times, at a random moment after both of its workers are there; the moments end when an
undisturbed run would have done its last iteration. On two cores, 20 kills take 8 minutes. Needs Ray (pip install
"worldenv[ray]").
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from subprocess import Popen

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "launch")]

from kills import held  # noqa: E402
from test_ray import ITERATIONS, ON_RAY, begin, largest_difference, steps, workers_of  # noqa: E402

EACH, WORKERS, LIMIT_S = 4, 2, 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-kills-") as folder:
        counts, again_s, wrong = kill_workers(Path(folder), random.Random(given.seed), given.kills)
    print(f"{'the folder held':24}{'kills':>6}")
    for kept, count in sorted(counts.items()):
        print(f"{kept:24}{count:6}")
    print(f"workers were there again after {max(again_s, default=0):.1f} s at most\nwrong: {len(wrong)}")
    sys.exit(bool(wrong))


def kill_workers(folder: Path, rng: random.Random, kills: int) -> tuple[Counter, list[float], list[str]]:
    """Kill until so many kills have hit; returns them by what was there, the seconds of restarts, and what is wrong."""
    counts, again_s, wrong, number = Counter(), [], [], 0
    command = run_on_ray(whole := folder / "whole")
    workers_there(command, set())
    began = time.monotonic()
    while len(steps(whole)) < ITERATIONS and command.poll() is None:
        time.sleep(0.02)
    whole_s = time.monotonic() - began
    assert command.wait(LIMIT_S) == 0, whole.with_suffix(".stderr").read_text()
    while counts.total() < kills:
        run, number = folder / f"run-{number}", number + 1
        command, killed, before = run_on_ray(run), set(), None
        for _ in range(min(EACH, kills - counts.total())):
            workers, there = workers_there(command, killed), time.monotonic()
            again_s += [time.monotonic() - before] if before and workers else []
            time.sleep(rng.uniform(0, whole_s))
            if len(workers) < WORKERS or command.poll() is not None or len(steps(run)) == ITERATIONS:
                break  # it has ended, or Ray would find nothing left to do
            os.kill(rng.choice(workers), signal.SIGKILL)
            before, killed = time.monotonic(), killed | set(workers)
            counts[held(run)] += 1
            print(f"{run.name}: kill {counts.total()}, {before - there:.1f} s after its workers were there", flush=True)
        if command.wait(LIMIT_S) or steps(run) != list(range(ITERATIONS)) or largest_difference(run, whole):
            wrong.append(run.name)
            print(
                f"{run.name}: code {command.returncode}, {run.with_suffix('.stderr').read_text()[-4000:]}", flush=True
            )
    return counts, again_s, wrong


def run_on_ray(run: Path) -> Popen:
    return begin(run, *ON_RAY, run.parent / "storage", "--launch.ray.max-failures", "-1")


def workers_there(command: Popen, killed: set[int]) -> list[int]:
    """The workers of the command that were not killed, once all are there; fewer if it ends before."""
    until = time.monotonic() + LIMIT_S
    while True:
        found = [worker for worker in workers_of(command) if worker not in killed]
        if len(found) >= WORKERS or command.poll() is not None or time.monotonic() > until:
            return found
        time.sleep(0.05)


if __name__ == "__main__":
    main()
