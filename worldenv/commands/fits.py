"""What the parts of a run need, what fits on a card, and how long a run takes there: `worldenv-info PRESET`.

`worldenv-train` asks the same, for whether idle parts are to wait in host memory.
"""

import argparse
import sys
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from worldenv.assemble import DEFAULT_CHUNK, costs
from worldenv.config import PARTS, TrainConfig, released
from worldenv.errors import UserError
from worldenv.nn.cost import Cost
from worldenv.records.progress import human_seconds
from worldenv.rollout.fit import Card, Fit, Work, fit
from worldenv.rollout.memory import free_bytes

GB = 1e9
SECONDS = 0.2  # that a measurement of the matrix peak takes at least


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is assumed of the card."""
    parser.add_argument("--card-gb", type=float, help="memory of the card, 10^9 bytes; default: what is free here")
    parser.add_argument("--tflops", type=float, help="its matrix peak, 10^12 FLOPs a second, from a data sheet")
    parser.add_argument("--measure", action="store_true", help="measure the matrix peak of this machine instead")
    parser.add_argument("--link-gbs", type=float, default=10.0, help="10^9 bytes/s to host memory (10: a guess)")
    parser.add_argument("--share", type=float, default=0.4, help="share of the peak that a run reaches (0.4: a guess)")


class Plan(NamedTuple):
    """What a run needs, and what of it fits."""

    suite: Any  # an outline, as `costs` returns it
    costs: dict[str, Cost]
    work: Work
    fit: Fit


def plan(config: TrainConfig, card: Card) -> Plan:
    """Nothing large is loaded. Raises UserError for folders that are missing or do not fit each other."""
    suite, found = costs(config)
    rl, horizon, chunk = config.rl, config.engine.horizon or suite.horizon, found["policy"].chunk or DEFAULT_CHUNK
    work = Work(
        episodes=rl.starts * rl.siblings,
        chunks=-(-horizon // chunk),
        iterations=rl.iterations,
        epochs=rl.epochs,
        at_once=rl.accumulate or rl.minibatch,
        frame_bytes=3 * len(suite.views) * suite.size**2,
        off_policy=rl.off_policy,
    )
    return Plan(suite, found, work, fit(found["policy"], [found["world"], found["reflector"]], card, work))


def is_too_small(found: Fit) -> bool:
    """Whether not even one episode fits, and one does where idle parts wait in host memory."""
    return not found.resident and found.apart_resident > 0


def offload(config: TrainConfig) -> str:
    """--rl.offload of a run that is about to practise, on or off. auto depends on what fits; a line says if it is on.

    auto is off on a CPU; with --from-scratch; with --rl.off-policy, which needs all parts at the same time; and if a
    part is the user's own, because nothing is known of it before it is loaded.
    """
    wanted, own = _wanted(config), [name for name in (getattr(config, role) for role in PARTS) if _is_own(name)]
    if wanted != "auto" or config.device == "cpu" or own or config.from_scratch:
        return "off" if wanted == "auto" else wanted
    device = torch.device(config.device)
    there = free_bytes(device) + torch.cuda.memory_allocated(device)  # as before the parts were loaded
    found = plan(config, Card(there / GB, None, 1.0)).fit
    if not is_too_small(found):
        return "off"
    print(
        f"world model and reflector, {_gb(found.idle_bytes)}, wait in host memory while the policy learns: the card is "
        f"too small for all (predicted: {found.apart_s:.1f} s an iteration; --rl.offload off keeps them on it)",
        file=sys.stderr,
    )
    return "on"


def _wanted(config: TrainConfig) -> str:
    return "off" if config.rl.off_policy else config.rl.offload


def _is_own(name: str) -> bool:
    return ":" in name and released(name) is None


def predict(config: TrainConfig, given: argparse.Namespace) -> dict[str, Any]:
    """What `worldenv-info PRESET [options of worldenv-train]` prints with --json, but for the preset's name.

    Raises UserError for a wrong option, and as `plan` does.
    """
    if given.tflops is not None and given.measure:
        raise UserError("--tflops and --measure both say what the peak is; leave one out")
    for name in ("card_gb", "tflops", "share", "link_gbs"):
        value = getattr(given, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} is {value}; it should be a positive number")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tflops = measured_tflops(device) if given.measure else given.tflops
    card = Card(given.card_gb or free_bytes(device) / GB, tflops, given.share, given.link_gbs)
    suite, found, work, result = plan(config, card)
    wanted = _wanted(config)
    is_apart = is_too_small(result) if wanted == "auto" else wanted == "on"
    return {
        "parts": {role: {"name": getattr(config, role), **asdict(cost)} for role, cost in found.items()},
        "suite": {"name": config.suite, "horizon": suite.horizon, "size": suite.size, "views": list(suite.views)},
        "card": asdict(card) | {"measured_tflops": given.measure},
        "work": asdict(work),
        "fit": asdict(result),
        "offload": {"wanted": wanted, "is_on": is_apart},
        "fits": (result.apart_resident if is_apart else result.resident) > 0,
    }


def measured_tflops(device: torch.device) -> float:
    """10^12 FLOPs a second of a large product of matrices: bfloat16 on a GPU, float32 on a CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device).to(dtype)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    count = max(1, round(SECONDS / max(min(seconds(1), seconds(1)), 1e-6)))  # the first one is slow
    return 2 * side**3 * count / seconds(count) / 1e12


def report(document: dict[str, Any]) -> str:
    """The same for people."""
    parts = {role: Cost(**{k: v for k, v in one.items() if k != "name"}) for role, one in document["parts"].items()}
    lines = [f"{'':<10} {'parameters':>14} {'weights':>10} {'learns':>12} {'an episode':>12} {'a chunk':>16}"]
    for role in PARTS[1:]:
        cost = parts[role]
        lines.append(
            f"{role:<10} {cost.parameters:>14,} {_gb(cost.weight_bytes):>10} {cost.learns:>12,} "
            f"{_mb(cost.slot_bytes):>12} {_gflop(cost.chunk_flops):>16}   {document['parts'][role]['name']}"
        )
    work, card, found = Work(**document["work"]), document["card"], Fit(**document["fit"])
    wanted = document["offload"]
    acts = parts["policy"]
    lines += [
        "",
        f"an episode resident   {_mb(found.slot_bytes)}, with its frames",
        f"a chunk in an update  {_mb(acts.record_bytes)} of record, {_mb(acts.update_bytes)} of activations, "
        f"{_gflop(acts.update_flops)}",
        f"an iteration          {work.episodes} episodes of {work.chunks} chunks: {_gb(found.record_bytes)} of records",
        f"a card of {card['gigabytes']:.0f} GB       {_gb(found.weight_bytes)} weights, {_gb(found.learning_bytes)} "
        f"gradients and moments, {_gb(found.update_bytes)} update; {_gb(found.room_bytes)} are left for episodes",
        f"fits                  {_verdict(found, work, found.resident, found.room_bytes)}",
        f"idle in an update     {_gb(found.idle_bytes)} of weights: world model and reflector",
        f"  fits if offloaded   {_verdict(found, work, found.apart_resident, found.apart_room_bytes)}; predicted: "
        f"{found.apart_s:.2f} s more an iteration, at {card['link']:.0f} GB/s",
        f"  --rl.offload {wanted['wanted']:<7} {'they are offloaded' if wanted['is_on'] else 'they stay on the card'}",
        f"a run                 {_hours(found, work, card)}",
        "Counted from sizes, not measured; every episode to the horizon. 'not counted' adds nothing to the sums.",
    ]
    return "\n".join(lines)


def _verdict(found: Fit, work: Work, resident: int, room: int) -> str:
    if resident == work.episodes:
        return f"yes, with all {work.episodes} episodes of an iteration at a time"
    if resident:
        return f"yes, with {resident} of the {work.episodes} episodes of an iteration at a time"
    return f"no: {_gb(found.slot_bytes - room)} are missing for one episode"


def _hours(found: Fit, work: Work, card: dict[str, Any]) -> str:
    if card["tflops"] is None:
        return "hours are not predicted: give --tflops, or --measure on the machine that is to run it"
    how = "measured" if card["measured_tflops"] else "given"
    at = f"at {card['share']:.0%} of {card['tflops']:.1f} TFLOP/s ({how})"
    pair = [("rollout", found.rollout_hours), ("update", found.update_hours)]
    said = [f"{name} {'not counted' if hours is None else human_seconds(3600 * hours)}" for name, hours in pair]
    return f"{work.iterations} iterations: {', '.join(said)}, {at}"


def _gb(count: int) -> str:
    return f"{count / GB:.2f} GB"


def _mb(count: int | None) -> str:
    return "not counted" if count is None else f"{count / 1e6:.2f} MB"


def _gflop(count: float | None) -> str:
    return "not counted" if count is None else f"{count / 1e9:,.{0 if count >= 1e10 else 3}f} GFLOP"
