"""The causal simulator step by step: reading the past from the cache against reading it again, as the field does.

    python benchmarks/rollout/causal.py [--shape tabletop|libero-base] [--episodes 16] [--chunks 3] [--rounds 3]
        [--dtype bfloat16]

Random weights: this is about speed and memory. Every way imagines the same chunks along the same actions from the
same noise; frames are compared with those of the first way before anything is timed. Rounds are interleaved, the ratio
is the median over rounds. Ends in one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worldenv import ops
from worldenv.interfaces.observation import Observation, Starts
from worldenv.ops.denoise_step import denoise_step
from worldenv.ops.philox import Use, philox
from worldenv.records.progress import table
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics, chunk_kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.replay import replay
from worldenv.worlds.causal.network import LIBERO_BASE, CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld

SHAPES = {"tabletop": CausalConfig(), "libero-base": LIBERO_BASE}
ROBOT = moved_gripper(Kinematics())


def random_starts(episodes: int, size: int) -> Starts:
    """Pictures of noise, all of one pose and instruction."""
    shape, draw = (episodes, 1, size, size, 3), torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    proprio = torch.tensor([0, 0.05, 0.1, 0, 0, 0, 0.5]).repeat(episodes, 1)
    camera = torch.from_numpy(tabletop_camera(size).projection).repeat(episodes, 1, 1, 1)
    text = torch.zeros(episodes, dtype=torch.int64)
    return Starts(Observation(frames, proprio, camera, text), ("put the red block on the green pad",))


def again(world: CausalWorld, starts: Starts, actions: Tensor, seed: int, velocity: Callable) -> Tensor:
    """`replay` without a cache: the window is read again at every denoising step, in plain PyTorch."""
    config, network, seen = world.network.config, world.network, starts.seen
    frame, camera = seen.frames[:, 0], seen.camera
    k, rooms, ids = config.chunk, config.window // config.chunk, torch.arange(len(frame), device=frame.device)
    poses = chunk_kinematics(seen.proprio, actions, world.robot.kinematics)
    poses = torch.cat([seen.proprio[:, None], poses], dim=1)
    clean, out = [network.tokenizer.encode(frame)], [frame]
    for chunk in range(actions.shape[1] // k):
        numbers = [0, *range(1 + max(0, chunk - rooms) * k, 1 + (chunk + 1) * k)]
        number = torch.tensor(numbers, device=frame.device)
        condition = world.condition(poses[:, numbers], camera)
        x = philox(seed, ids, torch.full_like(ids, chunk), Use.FRAME, (k * config.tokens, config.channels), normal=True)
        x = x.to(clean[0].dtype)
        past = torch.stack([clean[i] for i in numbers[:-k]], dim=1)
        for step, (t, t_next) in enumerate(zip(world.levels, (*world.levels[1:], 0.0), strict=True)):
            latents = torch.cat([past, x.unflatten(1, (k, -1))], dim=1)
            level = torch.zeros(len(frame), len(numbers), device=frame.device)
            level[:, -k:] = t
            predicted = velocity(latents, level, condition, number)[:, -k:].flatten(1, 2)
            x = denoise_step(x, predicted, t, t_next, seed, ids, torch.full_like(ids, chunk), Use.AGAIN + step)
        frames = x.unflatten(1, (k, -1))
        clean += frames.unbind(1)
        out += [network.tokenizer.decode(latent, world.size[1]) for latent in frames.unbind(1)]
    return torch.stack(out, dim=1)[:, :, None]


def decibels(found: Tensor, expected: Tensor) -> float:
    error = (found.float() - expected.float()).square().mean().item()
    return float("inf") if error == 0 else 10 * torch.log10(torch.tensor(255**2 / error)).item()


def plainly(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same with every op by its plain PyTorch reference."""

    def run() -> Tensor:
        before, ops.BACKEND = ops.BACKEND, "reference"
        try:
            return call()
        finally:
            ops.BACKEND = before

    return run


def make_ways(
    config: CausalConfig, device: str, dtype: torch.dtype, starts: Starts, actions: Tensor, compile: bool
) -> dict[str, Callable]:
    torch.manual_seed(0)
    network = CausalNetwork(replace(config, cache="float")).eval().requires_grad_(False).to(device)
    world = CausalWorld(network.to(dtype), ROBOT)
    small = CausalNetwork(replace(config, cache="int8")).eval().requires_grad_(False).to(device, dtype)
    small.load_state_dict(network.state_dict())
    eight, short = CausalWorld(small, ROBOT), CausalWorld(small, ROBOT, world.levels[:1])
    given = starts, actions, 0
    ways = {"window read again, plain PyTorch": plainly(lambda: again(world, *given, network.velocity_of_all))}
    if compile:
        compiled = torch.compile(network.velocity_of_all)
        ways["torch.compile of it"] = plainly(lambda: again(world, *given, compiled))
    return ways | {
        "cache, plain ops": plainly(lambda: replay(world, *given)),
        "+ fused ops": lambda: replay(world, *given),
        "+ 8-bit cache": lambda: replay(eight, *given),
        "+ one step instead of two": lambda: replay(short, *given),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tabletop")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile (half a minute)")
    given = parser.parse_args()
    if min(given.episodes, given.chunks, given.rounds) < 1:
        parser.error("--episodes, --chunks and --rounds must be positive")
    keep_freed_memory()
    device, config = "cuda" if torch.cuda.is_available() else "cpu", SHAPES[given.shape]
    shape, draw = (given.episodes, given.chunks * config.chunk, 7), torch.Generator().manual_seed(0)
    actions = (0.3 * torch.randn(shape, generator=draw)).clamp(-1, 1).to(device)
    starts = random_starts(given.episodes, config.image_size).to(device)
    with torch.no_grad():
        dtype = getattr(torch, given.dtype or ("bfloat16" if device == "cuda" else "float32"))
        measure(make_ways(config, device, dtype, starts, actions, not given.no_compile), given, config, device)


def measure(ways: dict[str, Callable], given: argparse.Namespace, config: CausalConfig, device: str) -> None:
    first, *_ = ways
    found, times = {}, {name: [] for name in ways}
    for name, way in ways.items():  # warm, and compared
        found[name] = decibels(way(), found.setdefault("expected", ways[first]()))
    del found["expected"]
    for i in range(given.rounds):
        for name in list(ways) if i % 2 else reversed(ways):
            began = time.perf_counter()
            ways[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    ratio = {n: statistics.median(a / b for a, b in zip(times[first], t, strict=True)) for n, t in times.items()}
    median_s = {name: statistics.median(t) for name, t in times.items()}
    frames = given.episodes * given.chunks * config.chunk
    slot = {n: new_slot(config, n).bytes_each() for n in ("float", "int8")}
    rows = [
        [name, f"{s:.2f} s", f"{frames / s:,.1f}", f"{ratio[name]:.2f}x", f"{found[name]:.1f} dB"]
        for name, s in median_s.items()
    ]
    title = f"{given.shape}, {given.episodes} episodes of {given.chunks} chunks on {device}"
    table(title, ["", "time", "frames/s", "against the first", "frames like the first's"], rows)
    print(
        json.dumps(
            {
                "shape": given.shape,
                "device": device,
                "episodes": given.episodes,
                "chunks": given.chunks,
                "median_s": median_s,
                "ratio": ratio,
                "decibels": found,
                "cache_bytes_an_episode": slot,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


def new_slot(config: CausalConfig, cache: str):
    with torch.device("meta"):
        return CausalNetwork(replace(config, cache=cache)).new_ring(1)


if __name__ == "__main__":
    main()
