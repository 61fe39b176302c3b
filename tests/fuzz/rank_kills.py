"""Kills of one rank of a job at any moment: all ranks end, and what goes on after it ends like an undisturbed job.

    python -P tests/fuzz/rank_kills.py --kills 20 --seed 0

One rank is killed at a random moment: half of the kills at any time after the job has begun, half after the first
iteration was saved. The others have to end by themselves. Then the job is resumed, or begun again if its folder is not
there yet, and may be killed again. Here the ranks look for signs of life more often than usual, so that a lost one is
found within seconds.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kills import held  # noqa: E402  first: it sets the number of threads
from small_job import PARTS, is_same, make_models, outcome, train  # noqa: E402

from worldenv.errors import exit_code  # noqa: E402
from worldenv.launch import join, watch  # noqa: E402
from worldenv.records.run_folder import RunFolder  # noqa: E402

RANKS = PARTS["rl"].starts
TICK_S, JOIN_S, LIMIT_S = 0.2, 8.0, 60.0  # the first two: in place of 1 s and 120 s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    watch.TICK_S, join.JOIN_S = TICK_S, JOIN_S
    with tempfile.TemporaryDirectory(prefix="rank-kills-") as folder:
        counts, wrong, ended_s = kill_ranks(Path(folder), random.Random(given.seed), given.kills)
    print(f"{'killed':24}{'the folder held':24}{'kills':>6}")
    for (rank, kept), count in sorted(counts.items()):
        print(f"{f'rank {rank}':24}{kept:24}{count:6}")
    print(f"the others ended after {max(ended_s):.1f} s at most\n{', '.join(f'{n}: {wrong[n]}' for n in WRONG)}")
    sys.exit(bool(wrong.total()))


WRONG = ("hung", "stuck", "different")  # ranks that did not end; a resume that failed; another result


def kill_ranks(folder: Path, rng: random.Random, kills: int) -> tuple[Counter, Counter, list[float]]:
    """Kill until so many kills have hit; returns them by rank and by what was there, what went wrong, and seconds."""
    models, counts, wrong, ended_s, number = make_models(folder / "models"), Counter(), Counter(), [], 0
    began = time.monotonic()
    codes = end(begin(models, folder / "whole"))
    assert codes == [0] * RANKS, (folder / "whole.said").read_text()
    whole_s, whole = time.monotonic() - began, outcome(folder / "whole")
    lines = RunFolder(folder / "whole").metrics("post_train")
    practice_s = lines[-1]["time_s"] - lines[0]["time_s"]
    while counts.total() < kills:
        run, number = folder / f"run-{number}", number + 1
        for _ in range(min(rng.choice((1, 1, 2)), kills - counts.total())):
            victim, is_late = rng.randrange(RANKS), rng.random() < 0.5
            ranks = begin(models, run)
            if is_late:
                wait_for(run / "checkpoints" / "post_train.state.safetensors")
            time.sleep(rng.uniform(0, practice_s if is_late else whole_s))
            os.kill(ranks[victim], signal.SIGKILL)
            killed = time.monotonic()
            codes = end(ranks)
            wrong["hung"] += None in codes
            if codes[victim] != -signal.SIGKILL:  # it had ended before
                break
            ended_s.append(time.monotonic() - killed)
            counts[victim, held(run)] += 1
        codes = end(begin(models, run))
        if codes != [0] * RANKS:
            wrong["stuck"] += 1
            print(f"stuck: {run.name}, exit codes {codes}: {run.with_suffix('.said').read_text()[-4000:]}", flush=True)
        elif not is_same(outcome(run), whole):
            wrong["different"] += 1
            print(f"different: {run.name}", flush=True)
    return counts, wrong, ended_s


def wait_for(state: Path) -> None:
    """Return when a file is there, or will not be."""
    until = time.monotonic() + LIMIT_S
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.001)


def begin(models: Path, run: Path) -> list[int]:
    """Processes that begin or resume the run together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    is_there, ranks = (run / "config.json").exists(), []
    for rank in range(RANKS):
        if not (child := os.fork()):
            given = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in given.items()} | {"MASTER_ADDR": "127.0.0.1"})
            os._exit(_exit_code(models, run, is_there))
        ranks.append(child)
    return ranks


def end(ranks: list[int]) -> list[int | None]:
    """Their exit codes; those that do not end are killed, and get None."""
    until, codes = time.monotonic() + LIMIT_S, dict.fromkeys(ranks)
    while None in codes.values() and time.monotonic() < until:
        for rank in (rank for rank in ranks if codes[rank] is None):
            ended, status = os.waitpid(rank, os.WNOHANG)
            codes[rank] = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.02)
    for rank in (rank for rank in ranks if codes[rank] is None):
        os.kill(rank, signal.SIGKILL)
        os.waitpid(rank, 0)
    return list(codes.values())


def _exit_code(models: Path, run: Path, is_there: bool) -> int:
    with run.with_suffix(".said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        with join.joined("worldenv-train") as ranks:
            train(models, run, is_there, ranks)
    except BaseException as error:
        traceback.print_exc()
        return exit_code(error)
    return 0


if __name__ == "__main__":
    main()
