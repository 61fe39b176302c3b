"""Kills of a training run at any moment: what goes on after them ends like a run that nobody disturbed.

    python -P tests/fuzz/kills.py --kills 100 --seed 0

A third of the kills come after a random time, the others right before a single file operation of the run: one of those
that make the run folder or take it up again, or any. A run that was killed is resumed, or begun again by the same
command where its folder is not there yet, and may be killed again.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402

torch.set_num_threads(1)

from file_steps import before_step, count_steps  # noqa: E402
from small_job import is_same, make_models, outcome, session  # noqa: E402

FIRST_STEPS = 40  # more than the making of a run folder, or its resume, takes
KILLED = (-signal.SIGKILL, -signal.SIGALRM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        counts, wrong = Trial(Path(folder)).run(rng, given.kills)
    print(f"{'killed':24}{'the folder held':24}{'kills':>6}")
    for (moment, held), count in sorted(counts.items()):
        print(f"{moment:24}{held:24}{count:6}")
    print(f"{'all':48}{counts.total():6}\nstuck: {wrong['stuck']}, different: {wrong['different']}")
    sys.exit(bool(wrong.total()))


class Trial:
    """Runs of one job in a folder, the first of them undisturbed."""

    def __init__(self, folder: Path):
        self.folder, self.models = folder, make_models(folder / "models")
        began = time.monotonic()
        steps = folder / "steps"
        session(self.models, folder / "whole", lambda: count_steps(folder, steps))
        self.whole_s, self.whole = time.monotonic() - began, outcome(folder / "whole")
        self.steps = int(steps.read_text())

    def run(self, rng: random.Random, kills: int) -> tuple[Counter, Counter]:
        """Kill until so many kills have hit; returns them by moment and by what was there, and what went wrong."""
        counts, wrong, number = Counter(), Counter(), 0
        while counts.total() < kills:
            run, number = self.folder / f"run-{number}", number + 1
            wanted = min(rng.choice((1, 1, 2, 3)), kills - counts.total())
            for _ in range(wanted):
                moment, prepare = self._moment(rng, run)
                code, said = session(self.models, run, prepare)
                if code not in KILLED:
                    break
                counts[moment, held(run)] += 1
            else:
                code, said = session(self.models, run)
            if code:
                wrong["stuck"] += 1
                print(f"stuck: {run.name}, exit {code}: {said}", flush=True)
            elif not is_same(outcome(run), self.whole):
                wrong["different"] += 1
                print(f"different: {run.name}", flush=True)
        return counts, wrong

    def _moment(self, rng: random.Random, run: Path) -> tuple[str, Callable[[], None]]:
        kind = rng.choice(("time", "making", "step"))
        if kind == "time":
            seconds = rng.uniform(0, self.whole_s)
            return "after a random time", lambda: signal.setitimer(signal.ITIMER_REAL, seconds)
        fatal = rng.randrange(FIRST_STEPS if kind == "making" else self.steps)
        name = "before an operation" if kind == "step" else "making or resuming"
        return name, lambda: before_step(self.folder, fatal, kill)


def kill() -> None:
    """End this process as if its machine had failed."""
    os.kill(os.getpid(), signal.SIGKILL)


def held(run: Path) -> str:
    """What a killed run left."""
    if not (run / "config.json").exists():
        return "no run yet"
    if (run / "result.json").exists():
        return "the result"
    if (run / "checkpoints" / "policy.safetensors").exists():
        return "the policy"
    return "a state" if any((run / "checkpoints").glob("*.state.safetensors")) else "the configuration"


if __name__ == "__main__":
    main()
