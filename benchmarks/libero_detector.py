"""The detector of LIBERO Object's things (worldenv/suites/libero/detector.py): trained, and measured on other episodes.

    python benchmarks/libero_detector.py --output FOLDER [--steps 4000] [--workers 2]

The scripted expert acts out episodes of all ten tasks, with the things in each other's places. MuJoCo draws their
states and says which pixels show which thing. In half of the pictures the things are somewhere else, some of them
turned, and the arm is moved (`rearranged.labelled`). The pictures are kept in FOLDER. The network learns from the
episodes numbered 0 and 1 of each task and is measured on number 2. FOLDER then holds detector.safetensors. The last
line of stdout is one JSON document.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.evaluation.things import LEAST_PX
from worldenv.records.model_files import save_model
from worldenv.records.progress import Progress
from worldenv.suites.libero.detector import KIND, KINDS, SIDE, Detector, DetectorConfig, what_pixels_show
from worldenv.suites.libero.suite import LiberoSuite

EPISODES, HELD_OUT = 3, 2  # of each task: how many, and the one on which the detector is measured
PICTURES = 200  # of an episode
NOISE = 0.3  # of the expert, as in demonstrations
HALVES = "recorded", "changed"  # states alternate in an episode's pictures (`rearranged.labelled`)
ALIKE = 0.25  # an area is right if it is off by no more than this share of the true one


def record(folder: Path, workers: int | None) -> dict[str, np.ndarray]:
    """Pictures [M, 64, 64, 3], how much of each pixel shows each kind [M, 10, 64, 64], and the episode's number [M]."""
    if (path := folder / "pictures.npz").exists():
        return dict(np.load(path))
    suite = LiberoSuite("libero_object", size=SIDE, repeat=2, shuffled=True, workers=workers)
    pictures, shows, numbers = [], [], []
    with Progress(EPISODES * len(suite.tasks), "labelled episodes") as progress:
        for number in range(EPISODES):
            episodes = [(task.name, number, "train") for task in suite.tasks]
            given = [(_states(suite, *episode), [number, i]) for i, episode in enumerate(episodes)]
            for part in suite.ask("label", episodes, given, progress):
                shown = np.zeros((len(part.frames), len(KINDS), SIDE, SIDE), dtype=np.uint8)
                shown[:, [KINDS.index(name.rpartition("_")[0]) for name in part.names.tolist()]] = part.shown
                pictures.append(part.frames)
                shows.append(shown)
                numbers.append(np.full(len(shown), number))
    suite.close()
    out = {"pictures": np.concatenate(pictures), "shows": np.concatenate(shows), "number": np.concatenate(numbers)}
    np.savez_compressed(path, **out)
    return out


def _states(suite: LiberoSuite, task: str, start: int, split: str) -> np.ndarray:  # [PICTURES, S]
    """Random states of an episode in which the expert succeeded."""
    demo = suite.demonstrate([suite.known[task]], [start], split, NOISE)[0]
    if not demo.success:
        raise RuntimeError(f"the expert failed in {task} from start {start}: {demo.told}")
    states = np.asarray(demo.extras["states"])
    return states[np.random.default_rng(start).choice(len(states), PICTURES)]


def train(pictures: np.ndarray, shows: np.ndarray, steps: int, seed: int) -> Detector:
    """Cross-entropy with what each pixel shows; pictures are shifted in brightness and colour, and get noise."""
    torch.manual_seed(seed)
    detector, random = Detector(DetectorConfig()).train(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        rows = random.integers(len(pictures), size=32)
        picture = torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float() / 255
        loss = F.cross_entropy(detector(_changed(picture)), _target(torch.from_numpy(shows[rows]).float() / 255))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}  loss {loss.item():.4f}", flush=True)
    return detector.eval()


def _changed(picture: Tensor) -> Tensor:
    scale = 1 + 0.15 * torch.randn(len(picture), 3, 1, 1)
    noise = 0.03 * torch.rand(len(picture), 1, 1, 1) * torch.randn_like(picture)
    return (picture * scale + noise).clamp(0, 1)


def _target(shows: Tensor) -> Tensor:  # [M, 10, H, W] -> [M, 11, H, W]
    return torch.cat([(1 - shows.sum(1, keepdim=True)).clamp(0, 1), shows], dim=1)


def measure(detector: Detector, pictures: np.ndarray, shows: np.ndarray) -> dict:
    """By kind, where at least LEAST_PX pixels show it: areas that are right, vanished ones, and the error of places."""
    there = np.concatenate([255 - shows.sum(1, keepdims=True).clip(0, 255), shows], axis=1).argmax(1)
    found, grid, out = what_pixels_show(pictures, detector), np.stack(np.mgrid[:SIDE, :SIDE]), {}
    for i, kind in enumerate(KINDS, start=1):
        true, said = (there == i).reshape(len(there), -1), (found == i).reshape(len(found), -1)
        use = true.sum(1) >= LEAST_PX
        share = said[use].sum(1) / true[use].sum(1)
        places = [part[use] @ grid.reshape(2, -1).T / part[use].sum(1, keepdims=True).clip(1) for part in (true, said)]
        apart = np.linalg.norm(places[0] - places[1], axis=1)[share > 0.1]
        absent = ~shows[:, i - 1].any((1, 2))
        out[kind] = {
            "pictures": int(use.sum()),
            "area_is_right": float((abs(share - 1) <= ALIKE).mean()),
            "below_60": float((share < 0.6).mean()),
            "vanished": float((share < 0.1).mean()),
            "apart_px": float(apart.mean()),
            "seen_where_absent": float((said[absent].sum(1) >= LEAST_PX).mean()),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    data = record(given.output, given.workers)
    held_out = data["number"] == HELD_OUT
    detector = train(data["pictures"][~held_out], data["shows"][~held_out], given.steps, given.seed)
    given_pictures, given_shows = data["pictures"][held_out], data["shows"][held_out]
    found = measure(detector, given_pictures, given_shows)
    halves = {name: measure(detector, given_pictures[i::2], given_shows[i::2]) for i, name in enumerate(HALVES)}
    means = {name: _mean(one) for name, one in ({"all": found} | halves).items()}
    made = {"steps": given.steps, "seed": given.seed, "pictures": int((~held_out).sum()), "held_out": means["all"]}
    save_model(given.output / "detector.safetensors", detector, KIND, made)
    print(json.dumps(made | {"held_out": means, "by_kind": found}))


def _mean(found: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found.values()])) for name in next(iter(found.values()))}


if __name__ == "__main__":
    main()
