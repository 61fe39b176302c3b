"""A causal world model of 128 pixels, trained for a while on demonstrations of LIBERO, and how fast it imagines.

    worldenv-collect libero_object --demos 5 --repeat 2 --tasks 1,3,4 --output DATA
    python benchmarks/rollout/large_world.py DATA/*.hdf5 --device cuda [--seconds 150] [--frames FOLDER] [--out FILE]

Trains on all episodes but every fifth, which it then imagines along their true actions from the first frame: PSNR by
chunk, and one picture an episode (true above imagined). Then the engine: frames per second and bytes of an episode for
several numbers of episodes. Needs no simulator. Ends in one JSON line.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_shapes import HORIZON, PART
from causal import random_starts
from PIL import Image
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.libero.panda import panda
from worldenv.training.imagined import as_imagined
from worldenv.training.train_causal import causal_loss, fit_tokenizer
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld

LARGE = CausalConfig(image_size=128, patch=8, channels=48, width=384, layers=6, heads=6, key_heads=2)
TINY = replace(LARGE, patch=32, width=64, layers=1, heads=1, key_heads=1)
LEVELS = tuple(1 - i / 8 for i in range(8))  # of a teacher that was not distilled: eight denoising steps
BATCH, CHUNKS, WARMUP, RATE = 16, 2, 100, 5e-4
EVERY = 8  # steps between the frames of a picture


def train(network: CausalNetwork, clips: Clips, seconds: float) -> dict[str, float]:
    """Steps for so many seconds, the compiler's not counted; the learning rate falls to zero with the time."""
    loss, cuda = causal_loss(network, panda(2), clips, BATCH, CHUNKS), network.see.weight.is_cuda
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=1e-3)
    if cuda:
        torch.set_float32_matmul_precision("high")
        network.velocity_of_all = torch.compile(network.velocity_of_all, dynamic=False)
    began, step, mean = time.monotonic(), 0, None
    while (spent := time.monotonic() - began) < seconds or step < 2:
        value, figures = loss(torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / WARMUP) * max(0.0, 1 - spent / seconds)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = figures["mse"] if mean is None else 0.98 * mean + 0.02 * figures["mse"]
        step += 1
        if step == 1:
            began = time.monotonic()  # compiled
        if step % 200 == 0:
            print(f"step {step}  {spent:.0f} s  mse {mean:.4f}", flush=True)
    return {"steps": step, "step_ms": 1e3 * seconds / step, "mse": mean}


def imagine(network: CausalNetwork, held_out: Clips, folder: Path | None) -> list[float]:
    """PSNR of each chunk, dB, over the held-out episodes."""
    imagined = as_imagined(CausalWorld(network, panda(2), LEVELS), held_out, 0)
    steps = torch.arange(1 + int(held_out.length.min()) // network.config.chunk * network.config.chunk)
    true, made = (c.frames_at(torch.arange(len(c)), steps.expand(len(c), -1))[:, :, 0] for c in (held_out, imagined))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for i, pair in enumerate(zip(true[:, ::EVERY], made[:, ::EVERY], strict=True)):
            Image.fromarray(np.concatenate([strip(frames) for frames in pair])).save(folder / f"episode-{i}.png")
    error = (true.float() - made.float()).div(255).square().mean((0, 2, 3, 4))[1:]
    return [round(x, 2) for x in (-10 * error.unflatten(0, (-1, network.config.chunk)).mean(1).log10()).tolist()]


def strip(frames: Tensor) -> np.ndarray:  # [M, H, W, 3] -> [H, M W, 3]
    return np.concatenate(list(frames.numpy()), 1)


def measure(network: CausalNetwork, episodes: int) -> dict[str, float]:
    """The engine with so many resident episodes: a simulator of bfloat16, keys and values in 8 bits."""
    device = network.see.weight.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.device(device):
        half = CausalNetwork(replace(network.config, cache="int8")).eval().requires_grad_(False)
        half.load_state_dict(network.state_dict())
        policy, reflector = SmallPolicy(SmallPolicyConfig()).eval(), SmallReflector(SmallReflectorConfig()).eval()
    world = CausalWorld(half.to(torch.bfloat16), panda(2))
    engine = Engine(policy, world, reflector, EngineConfig(HORIZON, capacity=episodes, batch=min(PART, episodes)))
    given = random_starts(episodes, network.config.image_size).to(device)
    for _ in range(2):  # kernels are compiled, then timed
        began = time.perf_counter()
        out = engine.run(given, 1, 0, stop=False)
        out.reward.sum().item()
        seconds = time.perf_counter() - began
    assert not out.broken.any() and len(engine.runner.episodes) == episodes
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    slot = engine.bytes_per_episode(given)[0]
    return {"episodes": episodes, "frames_per_s": episodes * HORIZON / seconds, "slot_bytes": slot, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="+", help="files of demonstrations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--episodes", type=int, nargs="+", default=[64, 1024, 8192])
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to see that everything works")
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    clips = Clips.open(args.data).in_memory()
    kept = torch.arange(len(clips)) % 5 == 4
    torch.manual_seed(0)
    network = CausalNetwork(TINY if args.tiny else LARGE)
    learned = clips.pick((~kept).nonzero()[:, 0])
    error = fit_tokenizer(network.tokenizer, learned.sample_frames(torch.Generator().manual_seed(0), 256)[:, 0])
    network.tokenizer.requires_grad_(False)
    network.to(args.device)
    found = {"episodes": len(clips), "weights": sum(p.numel() for p in network.parameters()), "tokenizer_mse": error}
    found |= train(network, learned, args.seconds)
    found["psnr_db_by_chunk"] = imagine(network.eval(), clips.pick(kept.nonzero()[:, 0]), args.frames)
    print(found, flush=True)
    found["engine"] = []
    for episodes in args.episodes:
        found["engine"].append(measure(network, episodes))
        print(found["engine"][-1], flush=True)
    text = json.dumps(found | {"card": torch.cuda.get_device_name() if args.device == "cuda" else None})
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
