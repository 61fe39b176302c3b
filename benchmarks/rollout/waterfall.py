"""Where the engine's speed comes from, step by step, against the usual loop in plain PyTorch.

    python benchmarks/rollout/waterfall.py [--episodes 256] [--rounds 3] [--json FILE.json]

All variants imagine the same number of episodes of the shipped models; the loop and torch.compile of it run in
float32 and in bfloat16. Their results are compared first, with the same random numbers: every frame that follows from
the loop's actions must agree to 40 dB PSNR, in 75 % of 64 episodes; then the mean rewards are compared. Rounds are
interleaved; a ratio is the median over rounds. Only frames up to an episode's stop are counted, but the share of the
measured peak of matrix products (peak.py) counts everything that was computed. Ends in one JSON line; --json writes a
file that compare.py and draw.py read.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lockstep import Lockstep, in_bfloat16
from null_models import null_engine, null_starts
from peak import flops_per_chunk, matrix_peak
from torch import Tensor

from worldenv import ops
from worldenv.assemble import load, make_engine
from worldenv.evaluation.measure import PRACTICE_STARTS, practice_starts
from worldenv.evaluation.pictures import psnr
from worldenv.interfaces.observation import Starts
from worldenv.records.progress import table
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.replay import replay

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, or imported by a test
from document import document, row, write  # noqa: E402

LOOP, LOOP_HALF = "the loop", "the loop in bfloat16"
# Where the contact network can hardly decide, other rounding decides otherwise, and the episode goes on differently.
LEAST_DB, LEAST_SHARE, COMPARED = 40.0, 0.75, 64


@dataclass
class Found:
    """What one rollout of a way came to."""

    reward: float  # mean, at the stop or at the end
    error: float  # its standard error
    chunks: int  # up to the stops
    computed: int  # chunks computed, whether an episode was over or not


@contextmanager
def plain():
    """Every op by its plain PyTorch reference."""
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        yield
    finally:
        ops.BACKEND = before


def in_lockstep(lockstep: Lockstep, starts: Starts) -> Found:
    """All episodes go to the horizon; counted to their stops."""
    _, reward, _ = lockstep.run(starts)
    over = reward > lockstep.engine.reflector.config.threshold
    at = torch.where(over.any(1), over.int().argmax(1), reward.shape[1] - 1)
    chunks = at // lockstep.engine.world.chunk + 1
    return as_found(reward.gather(1, at[:, None]), int(chunks.sum()), lockstep.engine.horizon * len(starts))


def as_found(reward: Tensor, chunks: int, computed: int) -> Found:
    return Found(reward.mean().item(), reward.std().item() / len(reward) ** 0.5, chunks, computed)


def by_engine(engine: Engine, starts: Starts, reference: bool) -> Found:
    if reference:
        with plain():
            return by_engine(engine, starts, False)
    out = engine.run(starts, 1, 0)
    return as_found(out.final_reward(), int(out.chunks.sum()), int(out.chunks.sum()))


def check(loops: dict[str, Lockstep], fast: Engine, starts: Starts) -> dict[str, dict[str, float]]:
    """Against the first loop's frames, after the same actions: the share of the episodes in which all frames agree to
    LEAST_DB, and the PSNR (dB) of all frames together."""
    few, first = starts.pick(torch.arange(min(COMPARED, len(starts)))), next(iter(loops.values()))
    expected, _, actions = first.run(few, seed=0)
    out = {}
    for name, engine in [*((name, loop.engine) for name, loop in loops.items()), ("engine", fast)]:
        with nullcontext() if engine is fast else plain():
            frames = replay(engine.world, few, actions.flatten(1, 2), 0)
        worst = psnr(frames[:, 1:].flatten(0, 2), expected[:, 1:].flatten(0, 2)).view(len(few), -1).amin(1)
        error = (frames[:, 1:].float() - expected[:, 1:].float()).square().mean()
        share = (worst > LEAST_DB).double().mean().item()
        out[name] = {"episodes_that_agree": share, "all_db": (10 * torch.log10(255**2 / error)).item()}
        if share < LEAST_SHARE:
            sys.exit(
                f"{name}: only {share:.0%} of {len(few)} episodes agree with the loop's to {LEAST_DB} dB in every "
                f"frame; it should be {LEAST_SHARE:.0%}; nothing was timed"
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile (some minutes)")
    parser.add_argument("--json", type=Path, help="write a file of the results; one that is there is left alone")
    given = parser.parse_args()
    if given.json and given.json.exists():
        parser.error(f"{given.json} is there already; name another file")
    if given.json and not os.access(given.json.parent, os.W_OK):
        parser.error(f"{given.json.parent} is no folder that can be written to")
    if not 16 <= given.episodes <= PRACTICE_STARTS or given.rounds < 1:
        parser.error(f"--episodes must lie between 16 and {PRACTICE_STARTS}, and --rounds be positive")
    keep_freed_memory()
    shipped = load()
    starts = practice_starts(shipped.suite, 0).pick(torch.arange(given.episodes))
    batch = EngineConfig(batch=given.episodes)
    parts = make_engine(shipped, precision="float32")
    small = make_engine(shipped, precision="int8")
    wholes = {
        name: make_engine(some, batch, precision="float32")
        for name, some in ((LOOP, shipped), (LOOP_HALF, in_bfloat16(shipped)))
    }
    loops = {name: Lockstep(engine) for name, engine in wholes.items()}
    agreement = check(loops, small, starts)
    if not given.no_compile:
        loops |= {f"torch.compile of {name}": Lockstep(engine, compiled=True) for name, engine in wholes.items()}
    whole = wholes[LOOP]

    ways: dict[str, Callable[[], Found]] = {name: partial(in_lockstep, loop, starts) for name, loop in loops.items()}
    ways |= {
        "slots recycled": lambda: by_engine(whole, starts, True),
        "+ parts that fit the cache": lambda: by_engine(parts, starts, True),
        "+ fused ops": lambda: by_engine(parts, starts, False),
        "+ 8 bits": lambda: by_engine(small, starts, False),
    }
    found, times = {name: way() for name, way in ways.items()}, {name: [] for name in ways}  # warm, and checked
    for i in range(given.rounds):
        for name in list(ways) if i % 2 else reversed(ways):
            began = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - began)
    peaks = {precision: matrix_peak(precision) for precision in ("float32", "bfloat16", "int8")}
    facts = {
        "episodes": given.episodes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "decibels": agreement,
        "operations_per_second": peaks,
        "flops_per_chunk": flops_per_chunk(parts, starts),
        "bytes_per_episode": sum(small.bytes_per_episode(starts)),
        "host_us_per_chunk": host_us(given.episodes),
    }
    rows = benchmarks(times, found, facts, small.world.chunk)
    print_waterfall(rows, facts)
    if given.json:
        write(given.json, document(rows, waterfall=facts))


def host_us(episodes: int) -> float:
    """Microseconds of one thread of the engine's own, an episode and chunk, so many resident; the best of three."""
    engine, starts = null_engine(episodes), null_starts(3 * episodes)
    each, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(4):
        began = time.perf_counter()
        chunks = int(engine.run(starts, 1, 0).chunks.sum())
        each.append(1e6 * (time.perf_counter() - began) / chunks)
    torch.set_num_threads(threads)
    return min(each[1:])


def over(rival: list[float], new: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(rival, new, strict=True))


def benchmarks(times: dict[str, list[float]], found: dict[str, Found], facts: dict, chunk: int) -> list[dict]:
    """A benchmark of the group `waterfall` for every way."""
    first, *_ = times
    out = []
    for name, t in times.items():
        precision = "int8" if "8 bits" in name else "bfloat16" if LOOP_HALF in name else "float32"
        seconds, peak = statistics.median(t), facts["operations_per_second"][precision]
        extra = {
            "speedup": over(times[first], t),
            "mean_reward": found[name].reward,
            "error_of_mean_reward": found[name].error,
            "frames_per_s": chunk * found[name].chunks / seconds,
            "episodes_per_hour": facts["episodes"] / seconds * 3600,
            "share_of_peak": found[name].computed * facts["flops_per_chunk"] / seconds / peak,
        }
        out.append(row(name, "waterfall", t, extra))
    extra["speedup_over"] = {name: over(times[name], t) for name in times if LOOP in name}  # of the last: the engine
    return out


def print_waterfall(rows: list[dict], facts: dict) -> None:
    cells = []
    for bench in rows:
        extra, s = bench["extra_info"], bench["stats"]["median"]
        cells.append(
            [
                bench["name"],
                f"{s:.2f} s",
                f"{extra['frames_per_s']:,.0f}",
                f"{extra['episodes_per_hour']:,.0f}",
                f"{extra['speedup']:.2f}x",
                f"{100 * extra['share_of_peak']:.0f} %",
                f"{extra['mean_reward']:.3f} +- {extra['error_of_mean_reward']:.3f}",
            ]
        )
    columns = ["", "time", "frames/s", "episodes/hour", "speed", "of peak", "mean reward"]
    table(f"{facts['episodes']} episodes", columns, cells)
    rivals = [f"{ratio:.2f} times as fast as {name}" for name, ratio in rows[-1]["extra_info"]["speedup_over"].items()]
    print(f"The engine: {', '.join(rivals)}.", file=sys.stderr)
    print(
        f"{facts['bytes_per_episode'] / 1e6:.3f} MB an episode (slot and records), "
        f"{facts['host_us_per_chunk']:.1f} us of the engine's own for an episode and chunk, "
        f"{facts['flops_per_chunk'] / 1e9:.2f} GFLOP for a chunk",
        file=sys.stderr,
    )
    names = ("speedup", "mean_reward", "frames_per_s", "share_of_peak")
    columns = {name: {bench["name"]: bench["extra_info"][name] for bench in rows} for name in names}
    median_s = {bench["name"]: bench["stats"]["median"] for bench in rows}
    over = rows[-1]["extra_info"]["speedup_over"]
    print(json.dumps({**facts, "median_s": median_s, "ratio": columns.pop("speedup"), "engine_over": over, **columns}))


if __name__ == "__main__":
    main()
