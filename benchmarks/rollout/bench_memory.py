"""Resident memory: of 4,096 episodes with their records, and over 100,000 that pass; models as in null_models.py."""

from pathlib import Path
from resource import getpagesize

import torch
from null_models import null_engine, null_starts

MIB = 2**20
RESIDENT, GOAL_BYTES = 4096, 4e9
PASSING, PER_RUN = 100_000, 4000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def bench_4096_resident_episodes(benchmark):
    starts = null_starts(RESIDENT)
    before, held = resident_bytes(), []

    def run():
        engine = null_engine(64, batch=64)  # the null models' own tensors stay small
        engine.capacity = RESIDENT
        held.append((engine, engine.run(starts, 1, 0)))

    benchmark.pedantic(run, rounds=1)
    engine, out = held[0]
    each = sum(engine.bytes_per_episode(starts))
    assert len(engine.episodes) == len(out.chunks) == RESIDENT
    grown = resident_bytes() - before
    benchmark.extra_info.update(episodes=RESIDENT, bytes_per_episode=each, grown_bytes=grown, goal_bytes=GOAL_BYTES)
    assert RESIDENT * each < GOAL_BYTES and 0.9 * RESIDENT * each < grown < GOAL_BYTES


def bench_100_000_episodes_pass(benchmark):
    torch.set_num_threads(1)
    engine, starts = null_engine(1024), null_starts(PER_RUN)
    seen, started = [], resident_bytes()

    def run():
        engine.run(starts, 1, 0)
        seen.append(resident_bytes())

    benchmark.pedantic(run, rounds=PASSING // PER_RUN)
    tenth, end = seen[len(seen) // 10], seen[-1]
    benchmark.extra_info.update(
        episodes=PASSING,
        resident_mib={"start": started / MIB, "after 10 %": tenth / MIB, "end": end / MIB, "most": max(seen) / MIB},
    )
    assert end - tenth < 32 * MIB
