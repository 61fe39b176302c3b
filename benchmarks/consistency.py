"""Does imagination tell the truth? Things that the policy moves, outcomes and gaps per task.

    python benchmarks/consistency.py [--models FOLDER] [--policies FILE ...] [--starts 1000]

Each policy acts on validation starts with its mean action, in the true suite and in imagination to the horizon. The
true actions are also replayed in imagination. The last line of stdout is one JSON document.
"""

import argparse
import json
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from worldenv.assemble import Parts, load, make_engine
from worldenv.evaluation.agreement import agreement
from worldenv.evaluation.measure import in_turn
from worldenv.evaluation.things import aimed_thing, late_frames
from worldenv.evaluation.truth import act_in_true, starts_of
from worldenv.interfaces.suite import Things
from worldenv.policy.small import SmallPolicy
from worldenv.records.progress import table
from worldenv.rollout.engine import Engine
from worldenv.rollout.memory import keep_freed_memory
from worldenv.rollout.replay import replay

FIRST_START, AT_ONCE = 20_000, 250  # validation starts that no other benchmark uses; episodes in memory at a time
COLUMNS = ("imagined", "replayed", "true")


def consistency(parts: Parts, engine: Engine, starts: int, seed: int) -> dict:
    """Act, imagine and replay `starts` episodes, the tasks in turn."""
    things, imagined, true, tasks = {name: [] for name in COLUMNS}, [], [], in_turn(parts.suite, starts)
    for first in range(0, starts, AT_ONCE):
        some = tasks[first : first + AT_ONCE]
        numbers = [FIRST_START + (first + i) // len(parts.suite.tasks) for i in range(len(some))]
        acted = act_in_true(parts.policy, parts.suite, some, numbers, "validation")
        begun = starts_of(acted)
        rollouts = engine.run(begun, 1, seed, first, explore=False, stop=False, video=True)
        actions = torch.from_numpy(np.stack([t.actions for t in acted]))
        frames = {
            "imagined": rollouts.video.numpy(),
            "replayed": replay(engine.world, begun, actions, seed).numpy(),
            "true": np.stack([t.frames for t in acted]),
        }
        late = [0, *late_frames(parts.suite.horizon)]
        for name, video in frames.items():
            things[name].append(parts.suite.find_things(video[:, late], some))
        imagined.append(rollouts.stopped.numpy())
        true.append([t.success.any() for t in acted])
    ends = np.concatenate(imagined), np.concatenate(true)
    whole = {
        name: Things(*map(np.concatenate, zip(*map(astuple, found), strict=True))) for name, found in things.items()
    }
    return {
        "moved_thing": {name: aimed_thing(found) for name, found in whole.items()},
        "agreement": agreement(*ends, [task.name for task in tasks], seed),
    }


def show(title: str, found: dict) -> None:
    """The rows of one policy."""
    moved, agreed = found["moved_thing"], found["agreement"]
    rows = [
        [label, *(f"{100 * moved[name][key]:.1f} %" for name in COLUMNS)]
        for key, label in (("below_60", "below 60 %"), ("below_35", "below 35 %"), ("two_places", "in two places"))
    ]
    table(f"{title}: the thing that the task moves", ["", *COLUMNS], rows)
    per_task = [
        [name, f"{100 * part['imagined']:.1f}", f"{100 * part['true']:.1f}", f"{100 * part['gap']:+.1f}"]
        for name, part in agreed["per_task"].items()
    ]
    table(f"{title}: success, %", ["", "imagined", "true", "gap"], per_task)
    low, high = agreed["interval"]
    print(
        f"{title}: outcomes agree in {100 * agreed['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{agreed['n']} episodes; |gap| per task: mean {100 * agreed['mean_gap']:.1f}, of which "
        f"{100 * agreed['mean_gap_by_chance']:.1f} would be expected by chance, largest "
        f"{100 * agreed['largest_gap']:.1f} points",
        file=sys.stderr,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=None, help="folder of the models; default: the shipped ones")
    parser.add_argument("--policies", type=Path, nargs="*", default=[], help="more policies, beside that of the models")
    parser.add_argument("--starts", type=int, default=1000, help="of each policy, over the tasks in turn")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    keep_freed_memory()
    parts, found = load(given.models), {}
    for name, policy in [("models", parts.policy), *((str(path), SmallPolicy.load(path)) for path in given.policies)]:
        parts.policy = policy
        found[name] = consistency(parts, make_engine(parts), given.starts, given.seed)
        show(name, found[name])
    print(json.dumps({"policies": found, "starts": given.starts, "seed": given.seed}))


if __name__ == "__main__":
    main()
