"""Limits of memory under which a rollout cannot keep its slots: it halves them until it fits, and comes out the same.

    python -P tests/fuzz/out_of_memory.py               # 10 limits, 8 bits and float32, one and two threads
    python -P tests/fuzz/out_of_memory.py --limits 1    # only the least limit of each

Ends with status 1 unless every run halved its slots until it fitted and equals the run without a limit: exactly in 8
bits, up to rounding in floats.
"""

import argparse
import ctypes
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent

import torch

from worldenv.assemble import Parts, load, make_engine
from worldenv.errors import UserError
from worldenv.evaluation.measure import practice_starts
from worldenv.interfaces.observation import Starts
from worldenv.nn.int8 import is_allowed
from worldenv.rollout.engine import EngineConfig
from worldenv.rollout.episodes import Rollouts

SLOTS, HORIZON, LIMIT_S, TOLERANCE = 96, 8, 120, 2e-3
# Of address space beyond that of a small run. The stack of a thread takes 8 MiB, and OpenMP ends the process where it
# cannot make one. oneDNN, which floats use, keeps its code for every size of batch.
ROOM_MIB = {"int8": [12, 13, 14, 15, 16, 17, 18, 20, 22, 24], "float32": [60, 70, 80, 90, 100, 110, 115, 120, 130, 140]}
M_MMAP_THRESHOLD = -3  # <malloc.h> of glibc
NO_LIMIT = resource.RLIM_INFINITY
HALVED = re.compile(r"out of memory with (\d+) slots.*; continuing with (\d+)")


def imagined(parts: Parts, starts: Starts, precision: str, threads: int, room: int | None) -> tuple[Rollouts, list]:
    """A rollout in this process, with `room` bytes of address space beyond what it has after a small one, and the
    numbers of slots before and after each halving."""
    torch.set_num_threads(threads)
    engine = make_engine(parts, EngineConfig(HORIZON, SLOTS), precision)
    engine.run(starts.pick(torch.arange(2 * threads)), 1, 0, stop=False)
    torch.ones(1 << 20).add_(1)  # OpenMP ends the process where it cannot make its threads: it makes them now
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if room is not None:
        resource.setrlimit(resource.RLIMIT_AS, (before + room, NO_LIMIT))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            out = engine.run(starts, 2, 0, stop=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (NO_LIMIT, NO_LIMIT))
    return out, [tuple(map(int, match.groups())) for w in said if (match := HALVED.search(str(w.message)))]


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


def judged(found: dict, precision: str) -> str:
    """What a run under a limit came to: halved, or WRONG."""
    halved = found.get("halved", [])
    each = bool(halved) and all(after == before // 2 for before, after in halved)
    near = found.get("apart", 1.0) <= (0.0 if precision == "int8" else TOLERANCE)
    return "halved" if found["end"] == "finished" and each and near else "WRONG"


def return_large_blocks() -> None:
    """Make glibc take large tensors from the system one by one, and return them.

    A limit of address space stands here for one of memory. Freed blocks in the middle of glibc's heap give their memory
    back, but not their addresses, and oneDNN would find none for its code.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)


def main(limits: int, all_threads: list[int], folder: Path) -> int:
    return_large_blocks()
    parts = load()
    starts = practice_starts(parts.suite, 0).pick(torch.arange(SLOTS))
    ends = Counter()
    for precision in ("int8", "float32") if is_allowed() else ("float32",):
        for threads in all_threads:
            file, given = folder / "expected.pt", (parts, starts, precision, threads)

            def whole(given=given, file=file) -> dict:
                torch.save(imagined(*given, None)[0], file)
                return {}

            def limited(mib: int, given=given, file=file) -> dict:
                out, halved = imagined(*given, mib << 20)
                return {"end": "finished", "halved": halved, "apart": apart(out, torch.load(file, weights_only=False))}

            in_child(whole)
            for mib in ROOM_MIB[precision][:limits]:
                found = in_child(partial(limited, mib))
                end = judged(found, precision)
                ends[end] += 1
                told = found.get("says") or f"{found.get('halved')}, apart by {found.get('apart', -1):.1e}"
                print(f"{precision:8}{threads} threads {mib:4} MiB  {end} ({found['end']}): {told}", flush=True)
    print(json.dumps(dict(ends)))
    return int(bool(ends["WRONG"]))


if __name__ == "__main__":
    import tempfile

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limits", type=int, default=10)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    with tempfile.TemporaryDirectory() as scratch:
        chosen = options.parse_args()
        sys.exit(main(chosen.limits, chosen.threads, Path(scratch)))
