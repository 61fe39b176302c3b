"""Resident memory of the engine with models that compute nothing (null_models.py); best in a process of its own.

    python benchmarks/rollout/memory_use.py resident 4096     what so many episodes take, with their records
    python benchmarks/rollout/memory_use.py passing 100000    what is resident while so many pass, 4,000 a run

Ends in one JSON line, bytes.
"""

import json
import sys
from pathlib import Path
from resource import getpagesize

import torch
from null_models import null_engine, null_starts

PER_RUN = 4000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def resident(episodes: int) -> dict:
    starts, engine = null_starts(episodes), null_engine(64, batch=64)  # few, so that the models' own tensors are small
    before = resident_bytes()
    engine.capacity = episodes
    out = engine.run(starts, 1, 0)
    grown = resident_bytes() - before
    assert len(engine.runner.episodes) == len(out) == episodes
    return {"episodes": episodes, "bytes_per_episode": sum(engine.bytes_per_episode(starts)), "grown": grown}


def passing(episodes: int) -> dict:
    engine, starts = null_engine(1024), null_starts(PER_RUN)
    seen = [resident_bytes()]
    for _ in range(episodes // PER_RUN):
        engine.run(starts, 1, 0)
        seen.append(resident_bytes())
    return {
        "episodes": episodes,
        "start": seen[0],
        "after_tenth": seen[len(seen) // 10],
        "most": max(seen),
        "end": seen[-1],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"resident": resident, "passing": passing}[sys.argv[1]](int(sys.argv[2]))))
