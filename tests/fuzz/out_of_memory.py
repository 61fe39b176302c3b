"""Limits of memory under which a rollout cannot keep its slots: it halves them until it fits, and comes out the same.

    python -P tests/fuzz/out_of_memory.py               # 10 limits, 8 bits and float32, one and two threads
    python -P tests/fuzz/out_of_memory.py --limits 1    # the same of the least limit alone

Ends with status 1 unless every run halved its slots, or said in one line that not even one slot fits, and every
finished one equals the run without a limit: exactly in 8 bits, up to rounding in floats.
"""

import argparse
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent

import torch

from worldenv.assemble import Parts, load, make_engine
from worldenv.errors import UserError
from worldenv.evaluation.measure import practice_starts
from worldenv.interfaces.observation import Starts
from worldenv.nn.int8 import is_fast
from worldenv.rollout.engine import EngineConfig
from worldenv.rollout.episodes import Rollouts

SLOTS, HORIZON, LIMIT_S, TOLERANCE = 96, 8, 120, 2e-3
SHARES = [0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6]  # of the memory that the run takes without a limit
HALVED = re.compile(r"out of memory with (\d+) slots.*; continuing with (\d+)")


def address_space(peak: bool = False) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    name = "VmPeak:" if peak else "VmSize:"
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def imagined(parts: Parts, starts: Starts, precision: str, threads: int, room: int | None) -> tuple[Rollouts, dict]:
    """A rollout in this process, with `room` bytes of address space beyond what it has after a small one."""
    torch.set_num_threads(threads)
    engine = make_engine(parts, EngineConfig(HORIZON, SLOTS), precision)
    engine.run(starts.pick(torch.arange(2 * threads)), 1, 0, stop=False)
    before = address_space()
    if room is not None:
        resource.setrlimit(resource.RLIMIT_AS, (before + room,) * 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = engine.run(starts, 2, 0, stop=False)
    steps = [tuple(map(int, match.groups())) for w in said if (match := HALVED.search(str(w.message)))]
    return out, {"grown": address_space(peak=True) - before, "halved": steps}


def apart(mine: Rollouts, other: Rollouts) -> float:
    """The greatest difference of an action, reward or count; infinite if a number is not finite."""
    pairs = zip(mine.tensors(), other.tensors(), strict=True)
    return max(float((a.double() - b.double()).abs().max().nan_to_num(nan=float("inf"))) for a, b in pairs)


def in_child(work) -> dict:
    """What `work()` returns in a forked process; {"end": ...} if it ended otherwise."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = work()
        except UserError as error:
            answer = {"end": "refused" if "\n" not in str(error) else "several lines", "says": str(error)}
        except BaseException as error:
            answer = {"end": "foreign", "says": "".join(traceback.format_exception_only(error))[-300:]}
        os.write(send, json.dumps(answer).encode()[:60000])
        os._exit(0)
    os.close(send)
    end, status = time.monotonic() + LIMIT_S, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else time.sleep(0.05)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as answers:
        answer = answers.read()
    return json.loads(answer) if answer else {"end": "hang" if status is None else f"crash, wait status {status}"}


def tried(parts: Parts, starts: Starts, precision: str, threads: int, share: float, file: Path, grown: int) -> dict:
    def work() -> dict:
        expected = torch.load(file, weights_only=False)
        out, facts = imagined(parts, starts, precision, threads, int(share * grown))
        return facts | {"end": "finished", "apart": apart(out, expected)}

    return in_child(work)


def is_right(found: dict, precision: str) -> bool:
    if found["end"] == "refused":
        return found["says"].startswith("out of memory:")
    halves = found.get("halved", [])
    each = all(after == before // 2 for before, after in halves)
    near = found.get("apart", 1.0) <= (0.0 if precision == "int8" else TOLERANCE)
    return found["end"] == "finished" and bool(halves) and each and near


def main(limits: int, folder: Path) -> int:
    parts = load()
    starts = practice_starts(parts.suite, 0).pick(torch.arange(SLOTS))
    wrong = finished = 0
    for precision in ("int8", "float32") if is_fast() else ("float32",):
        for threads in (1, 2):
            file = folder / f"{precision}-{threads}.pt"

            def whole(precision=precision, threads=threads, file=file) -> dict:
                out, facts = imagined(parts, starts, precision, threads, None)
                torch.save(out, file)
                return facts

            grown = in_child(whole)["grown"]
            for share in SHARES[:limits]:
                found = tried(parts, starts, precision, threads, share, file, grown)
                right = is_right(found, precision)
                wrong, finished = wrong + (not right), finished + (found["end"] == "finished")
                told = found.get("says") or f"{found.get('halved')}, apart by {found.get('apart', -1):.1e}"
                mib = share * grown / 2**20
                print(f"{precision:8}{threads} threads {mib:6.1f} MiB  {'' if right else 'WRONG '}{found['end']}: {told}")
    print(json.dumps({"wrong": wrong, "finished": finished}))
    return int(bool(wrong))


if __name__ == "__main__":
    import tempfile

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limits", type=int, default=len(SHARES))
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(main(options.parse_args().limits, Path(scratch)))
