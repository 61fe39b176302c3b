"""Where the engine's speed comes from, step by step, against the loop that everyone writes.

    python benchmarks/rollout/waterfall.py [--episodes 256] [--rounds 3]

All ways imagine the same number of episodes of the shipped models. What they imagine is compared first: frames along
fixed poses, and the mean reward. Rounds are interleaved; the ratio is the median over rounds. Ends in one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from lockstep import Lockstep
from torch import Tensor

from worldenv import ops
from worldenv.job import make_engine, practice_starts
from worldenv.kinematics import chunk_kinematics
from worldenv.memory import keep_freed_memory
from worldenv.metrics import psnr
from worldenv.progress import table
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.rollout.episodes import Rollouts, Starts
from worldenv.rollout.models import Models, shipped


@contextmanager
def plain():
    """Every op by its plain PyTorch reference."""
    before, ops.BACKEND = ops.BACKEND, "reference"
    try:
        yield
    finally:
        ops.BACKEND = before


def lockstep_reward(lockstep: Lockstep, starts: Starts) -> float:
    """Mean reward at the stop, or at the end, of episodes that all went to the horizon."""
    _, reward, _ = lockstep.run(starts, 1)
    over = reward > lockstep.engine.reflector.config.threshold
    at = torch.where(over.any(1), over.int().argmax(1), reward.shape[1] - 1)
    return reward.gather(1, at[:, None]).mean().item()


def fixed_frames(engine: Engine, starts: Starts, actions: Tensor) -> Tensor:
    """The frames along the poses of fixed actions [N, T, K, 7]."""
    poses = chunk_kinematics(starts.proprio, actions.flatten(1, 2), engine.kinematics)
    return engine.world.replay(starts.frame, torch.cat([starts.proprio[:, None], poses], dim=1), 0)


def check(exact: Engine, fast: Engine, starts: Starts) -> dict[str, float]:
    """PSNR (dB) of the fast engine's frames to plain PyTorch's, of the worst frame and over all, 16 whole episodes."""
    few = starts.pick(torch.arange(16))
    with plain():
        actions = exact.run(few, 1, 1, stop=False).action
        expected = fixed_frames(exact, few, actions)
    found = fixed_frames(fast, few, actions)
    each = psnr(found[:, 1:].flatten(0, 1), expected[:, 1:].flatten(0, 1))
    error = (found[:, 1:].float() - expected[:, 1:].float()).square().mean()
    return {"worst_frame_db": each.min().item(), "all_db": 10 * torch.log10(255**2 / error).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile (a minute)")
    given = parser.parse_args()
    keep_freed_memory()
    models, starts = Models.load(shipped()), practice_starts(0).pick(torch.arange(given.episodes))
    whole = make_engine(models, EngineConfig(precision="float32", batch=given.episodes))
    parts = make_engine(models, EngineConfig(precision="float32"))
    small = make_engine(models, EngineConfig(precision="int8"))
    agreement = check(parts, small, starts)

    def by_engine(engine: Engine, reference: bool) -> Callable[[], Rollouts]:
        def call() -> Rollouts:
            if not reference:
                return engine.run(starts, 1, 0)
            with plain():
                return engine.run(starts, 1, 0)

        return call

    ways: dict[str, Callable] = {"plain PyTorch, lockstep": lambda: lockstep_reward(Lockstep(whole), starts)}
    if not given.no_compile:
        compiled = Lockstep(whole, compiled=True)
        ways["torch.compile of it"] = lambda: lockstep_reward(compiled, starts)
    ways |= {
        "slots recycled": by_engine(whole, True),
        "+ parts that fit the cache": by_engine(parts, True),
        "+ fused ops": by_engine(parts, False),
        "+ 8 bits": by_engine(small, False),
    }
    rewards, times = {}, {name: [] for name in ways}
    for name, way in ways.items():  # warm, and checked
        found = way()
        rewards[name] = found if isinstance(found, float) else found.final_reward().mean().item()
    for i in range(given.rounds):
        for name in list(ways) if i % 2 else reversed(ways):
            began = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - began)
    print_waterfall(given.episodes, times, rewards, agreement)


def print_waterfall(episodes: int, times: dict, rewards: dict, agreement: dict) -> None:
    first, *_ = times
    ratio = {n: statistics.median(a / b for a, b in zip(times[first], t, strict=True)) for n, t in times.items()}
    median_s = {name: statistics.median(t) for name, t in times.items()}
    rows = [[name, f"{s:.2f} s", f"{episodes / s * 3600:,.0f}", f"{ratio[name]:.2f}x", f"{rewards[name]:.3f}"]
            for name, s in median_s.items()]  # fmt: skip
    table(f"{episodes} episodes", ["", "time", "episodes/hour", "against the first", "mean reward"], rows)
    print(json.dumps({"episodes": episodes, "median_s": median_s, "ratio": ratio, "mean_reward": rewards,
                      "threads": torch.get_num_threads(), "torch": torch.__version__, **agreement}))  # fmt: skip


if __name__ == "__main__":
    main()
