"""The kinematics of LIBERO's Panda (worldenv/suites/libero/panda.py): recorded, fitted, measured on other scenes.

    python benchmarks/libero_kinematics.py [--recorded FOLDER] [--workers 2]

Every scene is simulated without pictures, each action carried out once and twice: the expert, disturbed as by
`worldenv-collect`, and random actions that turn the hand little. Each scene is kept in a file of --recorded, and is not
simulated again. The kinematics are fitted to FITTED, where actions are carried out once, and measured on HELD_OUT. The
last line of stdout is one JSON document: the numbers for panda.py; how far these, those that it has and three other
fits are off.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from worldenv.robot.fit import Episode, chunk_errors, fit_kinematics
from worldenv.robot.fitted import FittedKinematics
from worldenv.suites.actors import Actor
from worldenv.suites.libero.panda import panda
from worldenv.suites.libero.suite import PROGRAM
from worldenv.suites.libero.tasks import STANDARD

FITTED = (("libero_spatial", 0), ("libero_object", 4), ("libero_goal", 8), ("libero_10", 7))
HELD_OUT = (("libero_spatial", 2), ("libero_object", 0), ("libero_goal", 5), ("libero_10", 8))
OBJECT = (("libero_object", 1), ("libero_object", 4), ("libero_object", 6))  # scenes of one suite
REPEATS = (1, 2)
STARTS = 2
ACTIONS = 64  # of an episode of random ones
SHARE = np.array([1.0] * 3 + [0.2] * 3 + [1.0])  # a policy turns the hand far less than it can be turned
NOISE = 0.3
CHUNK = 8
NAMES = ("step", "after", "inertia", "drift", "opening")
DIGITS = 5  # after the point: 0.01 mm for a unit of action
Scenes = tuple[tuple[str, int], ...]
MOTIONS = ("expert", "random")


def record(scene: tuple[str, int], folder: Path) -> None:
    suite, task = scene
    if (path := folder / f"{suite}.{task}.npz").exists():
        return
    out, actor, drawn = {}, Actor(PROGRAM), np.random.default_rng(task)
    built = suite, task, 8, ("agentview",), "fast", False
    for repeat in REPEATS:
        for start in range(STARTS):
            actor.perform(built, "demonstrate", start, start, STANDARD[suite] // repeat, repeat, NOISE, False)
            acted = actor.answer()
            out |= {
                f"expert.{repeat}.{start}.proprio": acted.proprio,
                f"expert.{repeat}.{start}.actions": acted.carried,
            }
            actor.begin(built, (start, start))
            proprio, actions = [actor.answer().proprio], random_actions(drawn)
            for action in actions:
                actor.act(action[None].repeat(repeat, axis=0), False)
                proprio.append(actor.answer().proprio)
            out |= {f"random.{repeat}.{start}.proprio": np.stack(proprio), f"random.{repeat}.{start}.actions": actions}
    actor.end()
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **out)
    partial.rename(path)


def random_actions(drawn: np.random.Generator) -> np.ndarray:  # [ACTIONS, 7] float32
    """Directions that are held for one to six actions, with noise."""
    held = [drawn.uniform(-1, 1, 7)[None].repeat(drawn.integers(1, 7), axis=0) for _ in range(ACTIONS)]
    actions = np.concatenate(held)[:ACTIONS] + 0.3 * drawn.standard_normal((ACTIONS, 7))
    return (actions * SHARE).clip(-1, 1).astype(np.float32)


def some(folder: Path, scenes: Scenes, motions: tuple[str, ...], repeat: int) -> list[Episode]:
    episodes = []
    for suite, task in scenes:
        with np.load(folder / f"{suite}.{task}.npz") as file:
            names = [f"{motion}.{repeat}.{start}" for motion in motions for start in range(STARTS)]
            episodes += [(file[f"{name}.proprio"], file[f"{name}.actions"]) for name in names]
    return episodes


def rounded(fitted: FittedKinematics) -> FittedKinematics:
    numbers = asdict(fitted)
    return FittedKinematics(**{name: np.round(numbers[name], DIGITS).tolist() for name in NAMES})


def errors(kinematics: FittedKinematics, episodes: list[Episode]) -> dict[str, float]:
    """Over the chunks of the episodes, in cm and degrees; `episode_cm`: from the first pose alone, after 48 actions."""
    away, turned = chunk_errors(kinematics, episodes, CHUNK)
    far = [
        (found - torch.from_numpy(poses)[48])[:3].norm().item()
        for poses, actions in episodes
        if len(actions) >= 48
        for found in [whole(kinematics, torch.from_numpy(poses[0]), torch.from_numpy(actions[:48]))]
    ]
    return {
        "chunks": len(away),
        "chunk_mean_cm": round(100 * float(away.mean()), 2),
        "chunk_end_cm": [round(100 * float(x), 2) for x in (away[:, -1].mean(), *np.quantile(away[:, -1], (0.5, 0.9)))],
        "chunk_end_deg": round(float(np.rad2deg(turned[:, -1].mean())), 2),
        "episode_cm": round(100 * float(np.mean(far)), 2) if far else None,
    }


def whole(kinematics: FittedKinematics, begun: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return kinematics.follow(begun, kinematics.rest(begun), actions)[0][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", type=Path, default=Path("libero_kinematics"))
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.recorded.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(lambda scene: record(scene, given.recorded), {*FITTED, *HELD_OUT, *OBJECT}))

    def fit(scenes: Scenes, repeat: int, by_place: bool = False) -> FittedKinematics:
        return fit_kinematics(some(given.recorded, scenes, MOTIONS, repeat), by_place)

    found, rows = rounded(fit(FITTED, 1)), []
    for repeat in REPEATS:
        rivals = {"these numbers": replace(found, repeat=repeat), "shipped": panda(repeat).kinematics}
        rivals |= {"fitted by place": replace(fit(FITTED, 1, by_place=True), repeat=repeat)}
        rivals |= {"fitted for this repeat": fit(FITTED, repeat), "fitted to libero_object": fit(OBJECT, repeat)}
        for name, motion, scene in product(rivals, MOTIONS, (HELD_OUT, *((one,) for one in HELD_OUT))):
            measured = errors(rivals[name], some(given.recorded, scene, (motion,), repeat))
            on = "all" if scene == HELD_OUT else " ".join(map(str, scene[0]))
            rows.append({"of": name, "repeat": repeat, "motion": motion, "on": on} | measured)
    print(json.dumps({"numbers": asdict(found), "errors": rows}))


if __name__ == "__main__":
    main()
