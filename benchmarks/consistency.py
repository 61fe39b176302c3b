"""Does imagination tell the truth? Things that the policy moves, outcomes, gaps per task, the reflector's calibration.

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

from worldenv.assemble import Parts, load, make_engine
from worldenv.evaluation.agreement import agreement, outcomes
from worldenv.evaluation.calibration import calibration, stop_errors
from worldenv.evaluation.consistency import look_at_all
from worldenv.evaluation.divergence import PHASES, begin_of_divergence
from worldenv.evaluation.guard import guard
from worldenv.evaluation.measure import in_turn
from worldenv.evaluation.replayed import replay_episodes
from worldenv.evaluation.things import aimed_thing
from worldenv.evaluation.truth import act_in_true, judge_trajectories, starts_of
from worldenv.interfaces.suite import Things
from worldenv.policy.small import SmallPolicy
from worldenv.records.progress import table
from worldenv.rollout.engine import Engine
from worldenv.rollout.memory import keep_freed_memory

FIRST_START, AT_ONCE = 20_000, 250  # validation starts that no other benchmark uses; episodes in memory at a time
COLUMNS = ("imagined", "replayed", "true")
JUDGED = ("replayed", "true")  # the frames whose truth is known


def consistency(parts: Parts, engine: Engine, starts: int, seed: int) -> dict:
    """Act, imagine and replay `starts` episodes, the tasks in turn."""
    late, judged = {name: [] for name in COLUMNS}, {name: [] for name in JUDGED}
    ends, phases, unsure = [], [], []
    tasks = in_turn(parts.suite, starts)
    for first in range(0, starts, AT_ONCE):
        some = tasks[first : first + AT_ONCE]
        numbers = [FIRST_START + (first + i) // len(parts.suite.tasks) for i in range(len(some))]
        acted = act_in_true(parts.policy, parts.suite, some, numbers, "validation")
        imagined = engine.run(starts_of(acted), 1, seed, first, explore=False, stop=False, video=True)
        replayed = replay_episodes(engine, acted, seed)
        looked = look_at_all(parts.suite, some, acted, imagined, replayed)
        for name, part in looked.items():
            late[name].append(part.late)
        judged["replayed"].append((replayed.reward, replayed.stop, replayed.success))
        judged["true"].append((*judge_trajectories(parts.reflector, acted), np.stack([t.success for t in acted])))
        ends.append(outcomes(imagined, acted, getattr(parts.reflector, "likely", None)))
        unsure.append(imagined.unsure().numpy())
        phases.append(begin_of_divergence(looked["true"].chunks, looked["imagined"].chunks)[1])
    said, true = joined(ends)
    begins = np.concatenate(phases)[said != true]
    return {
        "moved_thing": {name: aimed_thing(Things(*joined(map(astuple, found)))) for name, found in late.items()},
        "agreement": agreement(said, true, [task.name for task in tasks], seed)
        | {"begins": {name: int((begins == name).sum()) for name in PHASES}},
        "guard": guard(np.concatenate(unsure), said != true),
        "reflector": {
            name: calibration(reward, success) | stop_errors(stop, success)
            for name, (reward, stop, success) in ((name, joined(found)) for name, found in judged.items())
        },
    }


def joined(parts) -> list[np.ndarray]:
    """The arrays of several parts of the starts, each one after the other."""
    return [np.concatenate(several) for several in zip(*parts, strict=True)]


def show(title: str, found: dict) -> None:
    """The rows of one policy."""
    moved, agreed = found["moved_thing"], found["agreement"]
    rows = [
        [f"moved thing {label}", *(percent(moved[name][key]) for name in COLUMNS)]
        for key, label in (("below_60", "below 60 %"), ("below_35", "below 35 %"), ("two_places", "in two places"))
    ] + [
        [f"reflector's {label}", "-", *(percent(found["reflector"][name][key]) for name in JUDGED)]
        for key, label in (("ece", "calibration error"), ("false_stop", "false stops"), ("missed_stop", "missed stops"))
    ]
    table(f"{title}: frames", ["", *COLUMNS], rows)
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
        f"{100 * agreed['largest_gap']:.1f} points. Where outcomes differ, the episodes part in: "
        + ", ".join(f"{phase} {count}" for phase, count in agreed["begins"].items())
        + f". Guard: AUROC {found['guard']['auroc']}, {found['guard']['interval']}",
        file=sys.stderr,
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


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
