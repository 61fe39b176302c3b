"""What an 8-bit cache costs the causal world model: how imagined frames change, and whether they get less true.

    python benchmarks/cache_quality.py --run FOLDER [--steps 600] [--episodes 600] [--tests 64]

Trains the causal world model on disturbed expert episodes of tabletop (a stopped run continues), then imagines
other episodes along their true actions with its cache in floats, in 8 bits and, to have a scale, in floats from another
noise. Frames are compared chunk by chunk, late ones after the ring has gone round. The last line of stdout is one JSON
document.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.data.frames import MemoryFrames
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.records.model_files import save_model
from worldenv.records.progress import table
from worldenv.records.run_folder import RunFolder
from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.replay import replay
from worldenv.suites.tabletop.demonstrate import Disturbed
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.training.config import TOKENIZER_FRAMES
from worldenv.training.fit import Schedule, fit
from worldenv.training.pretrain import disturbed_episodes
from worldenv.training.train_causal import causal_loss, fit_tokenizer
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import LEVELS, CausalWorld

SUITE = TabletopSuite()
TEST_SEED = 1_000_003  # of the episodes that are imagined: tasks of their own
CHUNKS = 3  # in a row, when training


def clips_of(data: Disturbed) -> Clips:
    count, steps = data.actions.shape[:2]
    return Clips(
        MemoryFrames.padded(torch.from_numpy(data.frames)[:, :, None]),
        *(torch.from_numpy(part) for part in (data.proprio, data.actions, data.success)),
        torch.full((count,), steps),
        data.instructions,
        data.instructions,
        SUITE.views,
        cameras(count),
    )


def cameras(count: int) -> Tensor:  # [N, 1, 3, 4]
    return torch.from_numpy(SUITE.physics.camera.projection).expand(count, 1, 3, 4)


def starts_of(data: Disturbed) -> Starts:
    """The first observations."""
    texts, row = table_of(data.instructions)
    frames, proprio = (torch.from_numpy(part[:, 0]) for part in (data.frames, data.proprio))
    return Starts(Observation(frames[:, None], proprio, cameras(len(row)), row), texts)


def trained(folder: RunFolder, schedule: Schedule, count: int, seed: int) -> tuple[CausalNetwork, dict]:
    """The network after `schedule`, and the last figures of its training."""
    clips = clips_of(disturbed_episodes(count, seed))
    torch.manual_seed(seed)
    network = CausalNetwork(CausalConfig())
    frames = clips.sample_frames(torch.Generator().manual_seed(seed), TOKENIZER_FRAMES)
    fit_tokenizer(network.tokenizer, frames[:, 0])
    network.tokenizer.requires_grad_(False)
    loss = causal_loss(network, SUITE.robot, clips, schedule.batch, CHUNKS)
    seconds = fit(network, loss, schedule, "causal", folder, seed)
    made = {"steps": schedule.steps, "batch": schedule.batch, "seed": seed, "training_s": seconds}
    save_model(folder.path / "causal.safetensors", network, "causal", made, levels=LEVELS)
    return network.eval().requires_grad_(False), folder.metrics("causal")[-1]


def by_chunk(found: Tensor, expected: Tensor, chunk: int) -> list[float]:  # [N, T + 1, ...] uint8 -> dB each
    error = (found[:, 1:].float() - expected[:, 1:]).square().unflatten(1, (-1, chunk)).transpose(0, 1)
    error = error.flatten(1).mean(1)
    return (10 * (255**2 / error).log10()).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for the training; made, or continued")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--episodes", type=int, default=600, help="to learn from")
    parser.add_argument("--tests", type=int, default=64, help="episodes that are imagined")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if min(given.steps, given.episodes, given.tests) < 1:
        parser.error("--steps, --episodes and --tests must be positive")
    keep_freed_memory()
    schedule = Schedule(given.steps, 8, 1e-3)
    config = {"schedule": asdict(schedule), "episodes": given.episodes, "seed": given.seed}
    folder = RunFolder.resume(given.run) if given.run.is_dir() else RunFolder.create(given.run, config)
    network, figures = trained(folder, schedule, given.episodes, given.seed)
    print(json.dumps(measure(network, given.tests) | {"training": figures, "seed": given.seed}))


@torch.no_grad()
def measure(network: CausalNetwork, tests: int) -> dict:
    """Decibels of every chunk: each way's frames against the truth, and against those of the cache in floats."""
    data = disturbed_episodes(tests, TEST_SEED)
    small = CausalNetwork(replace(network.config, cache="int8")).eval().requires_grad_(False)
    small.load_state_dict(network.state_dict())
    floats, eight = CausalWorld(network, SUITE.robot), CausalWorld(small, SUITE.robot)
    given = starts_of(data), torch.from_numpy(data.actions)
    frames = {
        "cache in floats": replay(floats, *given, 0),
        "cache in 8 bits": replay(eight, *given, 0),
        "floats, other noise": replay(floats, *given, 1),
    }
    truth = torch.from_numpy(data.frames)[:, :, None]
    first, k = frames["cache in floats"], floats.chunk
    true = {name: by_chunk(found, truth, k) for name, found in frames.items()}
    apart = {name: by_chunk(found, first, k) for name, found in frames.items() if found is not first}
    rows = [[f"{name}, against the truth", *(f"{x:.2f}" for x in line)] for name, line in true.items()]
    rows += [[f"{name}, against floats", *(f"{x:.2f}" for x in line)] for name, line in apart.items()]
    table(f"PSNR in dB, {tests} episodes", ["chunk", *map(str, range(1, len(rows[0])))], rows)
    return {"tests": tests, "against_truth": true, "against_floats": apart}


if __name__ == "__main__":
    main()
