"""The engine's own cost: rollouts with models that compute nothing (null_models.py)."""

import pytest
import torch
from null_models import null_engine, null_starts

from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.parallel import CACHED

RESIDENT, EPISODES = 1024, 3072


@pytest.mark.parametrize(("threads", "batch"), [(1, CACHED), (1, RESIDENT), (2, CACHED)])
def bench_host_cost(benchmark, threads, batch):
    keep_freed_memory()  # as the programs do
    torch.set_num_threads(threads)
    engine, starts = null_engine(RESIDENT, batch=batch), null_starts(EPISODES)
    chunks = int(engine.run(starts, 1, 0).chunks.sum())
    assert 3 * EPISODES < chunks < 10 * EPISODES

    benchmark.pedantic(lambda: engine.run(starts, 1, 0) and None, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(resident=RESIDENT, chunks=chunks, threads=threads, batch=batch)
    if benchmark.stats:
        benchmark.extra_info["us_per_environment_and_chunk"] = 1e6 * benchmark.stats["median"] / chunks
