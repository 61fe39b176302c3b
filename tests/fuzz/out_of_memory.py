"""Limits of memory under which a rollout cannot keep its slots: it halves them until it fits, and comes out the same.

The limits lie between what the rollout takes with a quarter of its slots, and with all of them, both measured first.

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
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Rollouts

SLOTS, FEW, HORIZON, LIMIT_S = 96, 24, 8, 120
TOLERANCE = 1e-2  # in floats: sizes of batch alone bring 2e-3 (AVX-512) to 2.5e-3 (AVX2), another seed 26
PEAK = re.compile(r"VmPeak:\s+(\d+) kB")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # <malloc.h> of glibc
NO_LIMIT = resource.RLIM_INFINITY
HALVED = re.compile(r"out of memory with (\d+) slots.*; continuing with (\d+)")


def engine_of(parts: Parts, starts: Starts, precision: str, threads: int, slots: int = SLOTS) -> tuple[Engine, int]:
    """An engine after a small rollout, and the bytes of address space that this process has then."""
    torch.set_num_threads(threads)
    engine = make_engine(parts, EngineConfig(HORIZON, slots), precision)
    engine.run(starts.pick(torch.arange(2 * threads)), 1, 0, stop=False)
    torch.ones(1 << 20).add_(1)  # OpenMP ends the process where it cannot make its threads: it makes them now
    return engine, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def unlimited(parts: Parts, starts: Starts, precision: str, threads: int, slots: int) -> tuple[Rollouts, int]:
    """A rollout in this process, and the bytes of address space that it takes beyond those of a small one."""
    engine, before = engine_of(parts, starts, precision, threads, slots)
    out = engine.run(starts, 2, 0, stop=False)
    return out, 1024 * int(PEAK.search(Path("/proc/self/status").read_text()).group(1)) - before


def imagined(parts: Parts, starts: Starts, precision: str, threads: int, room: int) -> tuple[Rollouts, list]:
    """A rollout in this process, with `room` bytes of address space beyond what it has after a small one, and the
    numbers of slots before and after each halving."""
    engine, before = engine_of(parts, starts, precision, threads)
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
    glibc = ctypes.CDLL(None)
    glibc.mallopt(M_MMAP_THRESHOLD, 1 << 17)
    glibc.mallopt(M_ARENA_MAX, 1)  # a thread with a heap of its own would for a moment take 128 MiB of addresses


def main(limits: int, all_threads: list[int], folder: Path) -> int:
    return_large_blocks()
    parts = load()
    starts = practice_starts(parts.suite, 0).pick(torch.arange(SLOTS))
    ends = Counter()
    for precision in ("int8", "float32") if is_allowed() else ("float32",):
        for threads in all_threads:
            file, given = folder / "expected.pt", (parts, starts, precision, threads)

            def needed(slots: int, given=given, file=file) -> dict:
                out, room = unlimited(*given, slots)
                if slots == SLOTS:
                    torch.save(out, file)
                return {"room": room}

            def limited(room: int, given=given, file=file) -> dict:
                out, halved = imagined(*given, room)
                return {"end": "finished", "halved": halved, "apart": apart(out, torch.load(file, weights_only=False))}

            few, whole = (in_child(partial(needed, slots))["room"] for slots in (FEW, SLOTS))
            for i in range(limits):  # oneDNN's code takes more on some CPUs: what is too little is found, not given
                room = few + (whole - few) * i // limits
                found = in_child(partial(limited, room))
                end = judged(found, precision)
                ends[end] += 1
                told = found.get("says") or f"{found.get('halved')}, apart by {found.get('apart', -1):.1e}"
                limit = f"{precision:8}{threads} threads {room / 2**20:6.1f} MiB"
                print(f"{limit}  {end} ({found['end']}): {told}", flush=True)
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
