"""The pair that users download, at its real size with random weights on one GPU: memory, rollouts and an update.

    python benchmarks/rollout/real_size.py --out FILE [--episodes 16 32 64] [--chunks 2] [--limit 420]
    python benchmarks/rollout/real_size.py --count          # parameters, bytes and FLOPs; needs no GPU and no memory

OpenVLA-OFT (7B, LoRA of rank 32), Qwen2.5-VL-7B and a Wan world model of 1.3B with the autoencoder of Wan 2.2 are in
memory together, in bfloat16, as the preset `rlinf-wan-libero` has them. FILE is written anew after each phase. FLOPs
are those that torch counts while the parts run. Random judges teach nothing, so the update learns from advantages of
1 and -1. It ends with one JSON line.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from causal import random_starts
from released_sizes import REAL, TINY, Outline, outlines
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, or imported by a test
from document import document, row  # noqa: E402

from worldenv.commands.fits import GB, measured_tflops  # noqa: E402
from worldenv.config import presets  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Starts  # noqa: E402
from worldenv.nn.cost import size_of  # noqa: E402
from worldenv.rl.learner import Learner  # noqa: E402
from worldenv.rollout.engine import Engine  # noqa: E402
from worldenv.rollout.episodes import Rollouts  # noqa: E402
from worldenv.rollout.fit import Card, Fit, Work, fit  # noqa: E402
from worldenv.rollout.memory import free_bytes, out_of_memory_says  # noqa: E402

PRESET = presets()["rlinf-wan-libero"][1]
WARM = 8  # episodes of the run that warms up and counts FLOPs
GROUP = "real_size"


class Benchmark:
    """One run: what it has measured so far is in the file after each phase."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.given, self.device, self.began = given, torch.device(given.device), time.monotonic()
        self.rows: list[dict] = []
        self.facts: dict[str, Any] = {"tiny": given.tiny, "chunks": given.chunks, "skipped": []}
        self.sizes = TINY if given.tiny else REAL
        self.outlines = outlines(self.sizes, folder)

    def save(self, said: str) -> None:
        self.facts["seconds"] = time.monotonic() - self.began
        if self.given.out:
            self.given.out.write_text(json.dumps(document(self.rows, **self.facts), indent=1) + "\n")
        print(f"{self.facts['seconds']:6.1f} s  {said}", flush=True)

    def run(self) -> None:
        tflops = measured_tflops(self.device)
        self.facts["peak_tflop_per_s"] = tflops
        fits = self.check_room()
        self.save(f"matrix peak {tflops:.1f} TFLOP/s; {fits.resident} episodes are predicted to fit")
        parts = self.make()
        starts = random_starts(max(WARM, *self.given.episodes), self.sizes.rlinf.size).to(self.device)
        flops = self.count(self.engine(parts, WARM, batch=WARM), starts.pick(self.rows_of(WARM)))
        rollouts = None
        for episodes in self.given.episodes:
            if episodes > fits.resident:
                self.skip(f"{episodes} episodes", f"{fits.resident} are predicted to fit")
            elif self.is_late(episodes):
                self.skip(f"{episodes} episodes", f"they would end after the limit of {self.given.limit:g} s")
            else:
                rollouts = self.rollout(self.engine(parts, episodes), starts.pick(self.rows_of(episodes)), flops)
        if rollouts is None:
            raise UserError(f"no rollout was measured ({'; '.join(self.facts['skipped'])}): take fewer episodes")
        self.update(parts["policy"], rollouts)

    def rows_of(self, episodes: int) -> torch.Tensor:
        return torch.arange(episodes, device=self.device)

    def check_room(self) -> Fit:
        """Raise UserError unless weights, update and one episode fit what is free."""
        most, free = max(self.given.episodes), free_bytes(self.device)
        found = predicted(self.outlines, free / GB, most, self.given.chunks, self.sizes.rlinf.size)
        self.facts["costs"] = {role: asdict(outline.cost) for role, outline in self.outlines.items()}
        self.facts |= {"fit": asdict(found), "free_bytes": free}
        if not found.resident:
            raise UserError(
                f"{free / GB:.1f} GB are free, and {-found.room_bytes / GB:.1f} GB more are needed for weights and "
                "update: take a larger card, or end what else runs on it"
            )
        return found

    def make(self) -> dict[str, Any]:
        """The three parts, one after the other, with the memory that each takes."""
        parts, self.facts["parts"] = {}, {}
        for role, outline in self.outlines.items():
            before, began = self.allocated(), time.monotonic()
            part = parts[role] = outline.make(self.device)
            network = part.network if role == "world" else part
            parameters, size = size_of(network)
            self.facts["parts"][role] = {
                "parameters": parameters,
                "weight_bytes": size,
                "allocated_bytes": self.allocated() - before,
                "made_s": time.monotonic() - began,
            }
            self.save(f"{role}: {parameters / 1e9:.2f} B parameters, {size / GB:.2f} GB")
        return parts

    def engine(self, parts: dict[str, Any], capacity: int, batch: int | None = None) -> Engine:
        horizon = self.given.chunks * parts["policy"].chunk
        config = replace(PRESET.engine, horizon=horizon, capacity=capacity, batch=batch)
        return Engine(parts["policy"], parts["world"], parts["reflector"], config)

    def count(self, engine: Engine, starts: Starts) -> float:
        """FLOPs of an episode, with its begin; the kernels are warm after it."""
        with counting() as samples:
            slot, record = engine.bytes_per_episode(starts)
        with counting() as all_of_it:
            engine.run(starts, 1, 0, stop=False)
        flops = (all_of_it.get_total_flops() - samples.get_total_flops()) / len(starts)  # a run samples once, too
        self.facts |= {"slot_bytes": slot, "record_bytes": record, "episode_flops": flops}
        self.save(f"an episode: {slot / 1e6:.1f} MB resident, {flops / 1e12 / self.given.chunks:.2f} TFLOP a chunk")
        return flops

    def rollout(self, engine: Engine, starts: Starts, flops: float) -> Rollouts:
        episodes = len(starts)
        engine.run(starts, 1, 0, stop=False)  # finds how many episodes fit a pass
        self.forget_peak()
        out, seconds = self.timed(lambda: engine.run(starts, 1, 0, stop=False))
        resident = len(engine.runner.episodes)
        facts = {
            "episodes": episodes,
            "resident": resident,
            "batch": engine.runner.batch,
            "frames_per_s": episodes * engine.config.horizon / seconds,
            "share_of_peak": self.share(episodes * flops, seconds),
            "broken": int(out.broken.sum()),
            **self.peak(),
        }
        self.rows.append(row(f"rollout[{episodes}]", GROUP, [seconds], facts))
        self.save(
            f"{episodes} episodes: {facts['frames_per_s']:.2f} frames/s, {facts['share_of_peak']:.1%} of the peak"
        )
        engine.runner.give_up_slots()
        return out

    def update(self, policy: Any, rollouts: Rollouts) -> None:
        """One PPO update from the last rollouts, after a step that warms up and counts FLOPs."""
        rl, draw = PRESET.rl, torch.Generator().manual_seed(0)
        learner = Learner(policy, rl)
        learner.set_rates(0)
        sign = torch.ones(len(rollouts.chunks), device=self.device)
        sign[1::2] = -1
        few = -(-rl.minibatch // self.given.chunks)
        with counting() as counter:
            warm = learner.update(rollouts[:few], sign[:few], draw)
        a_chunk = counter.get_total_flops() / warm["chunks"]
        learnt = rollouts[: self.given.learn]
        self.forget_peak()
        found, seconds = self.timed(lambda: learner.update(learnt, sign[: self.given.learn], draw))
        facts = {
            "chunks": found["chunks"],
            "minibatch": rl.minibatch,
            "at_once": rl.accumulate,
            "chunk_s": seconds / found["chunks"],
            "chunk_flops": a_chunk,
            "share_of_peak": self.share(found["chunks"] * a_chunk, seconds),
            "loss": found["loss"],
            "skipped_steps": learner.skipped,
            **self.peak(),
        }
        self.rows.append(row("update", GROUP, [seconds], facts))
        self.save(f"update: {facts['chunk_s']:.3f} s a chunk, {facts['share_of_peak']:.1%} of the peak")

    def is_late(self, episodes: int) -> bool:
        """Whether so many episodes, run twice, would end after the limit at the speed of those before."""
        if not self.rows:
            return False
        last = self.rows[-1]
        each = last["stats"]["total"] / last["extra_info"]["episodes"]
        return time.monotonic() - self.began + 2.2 * each * episodes > self.given.limit

    def skip(self, what: str, why: str) -> None:
        self.facts["skipped"].append(f"{what}: {why}")
        self.save(f"{what} not measured: {why}")

    def share(self, flops: float, seconds: float) -> float:
        return flops / seconds / (1e12 * self.facts["peak_tflop_per_s"])

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self.wait()
        began = time.perf_counter()
        out = call()
        self.wait()
        return out, time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, int]:
        if self.device.type != "cuda":
            return {}
        used = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {f"peak_{name}_bytes": count for name, count in used.items()}


def counting() -> FlopCounterMode:
    """torch's counter, with a formula of attention for grouped heads too, and for the op of the CPU."""

    def attention(query: tuple, key: tuple, value: tuple, *given: Any, out_shape: Any = None, **named: Any) -> int:
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    kinds = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    calls = (getattr(torch.ops.aten, f"_scaled_dot_product_{kind}") for kind in kinds)
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(calls, attention))


def predicted(found: dict[str, Outline], gigabytes: float, episodes: int, chunks: int, pixels: int) -> Fit:
    """What fits a card, by arithmetic."""
    rl = PRESET.rl
    work = Work(episodes, chunks, 1, rl.epochs, rl.accumulate or rl.minibatch, 3 * pixels**2)
    policy, *others = (outline.cost for outline in found.values())
    return fit(policy, others, Card(gigabytes, None, 1.0), work)


def count(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Parameters and costs, and the prediction for cards of 80 and 141 GB."""
    sizes = TINY if given.tiny else REAL
    found = outlines(sizes, folder)
    cards = (predicted(found, gb, max(given.episodes), given.chunks, sizes.rlinf.size) for gb in (80, 141))
    return {
        "costs": {role: asdict(outline.cost) for role, outline in found.items()},
        "resident": {name: one.resident for name, one in zip(("80 GB", "141 GB"), cards, strict=True)},
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; one that is there is not overwritten")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--episodes", type=int, nargs="+", default=[16, 32, 64], help="resident at a time")
    parser.add_argument("--chunks", type=int, default=2, help="of an episode")
    parser.add_argument("--learn", type=int, default=16, help="episodes of the update, of the last rollout's")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further rollout begins")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--count", action="store_true", help="count the parts, and make none")
    given = parser.parse_args(words)
    if min(given.chunks, given.learn, *given.episodes) < 1:
        parser.error("--episodes, --chunks and --learn are at least 1")
    try:
        if given.out and given.out.exists():
            raise UserError(f"{given.out} is there already; name another file")
        with tempfile.TemporaryDirectory() as folder:
            if given.count:
                return print(json.dumps(count(given, Path(folder))))
            if given.device != "cpu" and not torch.cuda.is_available():
                raise UserError("torch finds no CUDA device; --count and --tiny --device cpu need none")
            if given.device == "cpu" and not given.tiny:
                raise UserError("the parts at their real size need a GPU; give --tiny, or --count")
            measured = Benchmark(given, Path(folder))
            with out_of_memory_says("take fewer --episodes; the file of --out has what was measured before"):
                measured.run()
    except UserError as error:
        parser.exit(2, f"real_size: {error}\n")
    print(json.dumps({row["name"]: row["extra_info"] for row in measured.rows}))


if __name__ == "__main__":
    main()
