"""How much do a policy's outcomes depend on its pictures: on noise, brightness, contrast and saturation?

    python benchmarks/sensitivity.py [--models FOLDER] [--suite NAME] [--policies FILE ...] [--starts 1000]
                                     [--noise 2 5 8 81] [--light 0.8 1.2]

Each policy acts in the true suite with its mean action, on the validation starts of `consistency.py`: once on the true
frames, and once for each change of the frames that it sees. Noise is white, with a standard deviation in levels of 255
(81: a variance of 0.1, if levels go from 0 to 1). The share of outcomes that stay the same is a yardstick for the
agreement of imagination. The last line of stdout is one JSON document.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from altered import Alter, Altered, brightness, contrast, noise, saturation
from consistency import FIRST_START

from worldenv.assemble import Parts, load
from worldenv.evaluation.measure import in_turn
from worldenv.evaluation.truth import steps_to_success
from worldenv.interfaces.policy import Policy
from worldenv.policy.small import SmallPolicy
from worldenv.records.intervals import wilson_interval
from worldenv.records.progress import table

COLUMNS = {"success": "success, %", "agreement": "same outcome, %"}
LIGHT = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


def changes(deviations: list[float], factors: list[float], seed: int) -> dict[str, Alter]:
    """What is done to the frames, by name."""
    named = {f"noise {deviation:g}": noise(deviation, seed) for deviation in deviations}
    return named | {f"{name} x {factor:g}": make(factor) for name, make in LIGHT.items() for factor in factors}


def sensitivity(parts: Parts, policy: Policy, starts: int, changed: dict[str, Alter]) -> dict:
    """Success on true frames; for each change, success and how many outcomes are those of the true frames."""
    tasks = in_turn(parts.suite, starts)
    numbers = [FIRST_START + i // len(parts.suite.tasks) for i in range(starts)]

    def outcomes(who: Policy) -> np.ndarray:
        return steps_to_success(who, parts.suite, tasks, numbers, "validation") > 0

    true, found = outcomes(policy), {}
    for name, alter in changed.items():
        other = outcomes(Altered(policy, alter))
        same = int((other == true).sum())
        interval = list(wilson_interval(same, starts))
        found[name] = {"success": float(other.mean()), "agreement": same / starts, "interval": interval}
    return {"success": float(true.mean()), "changes": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=None, help="folder of the models; default: the shipped ones")
    parser.add_argument("--policies", type=Path, nargs="*", default=[], help="more policies, beside that of the models")
    parser.add_argument("--starts", type=int, default=1000, help="of each policy, over the tasks in turn")
    parser.add_argument("--suite", default="tabletop")
    parser.add_argument("--noise", type=float, nargs="*", default=[2.0, 5.0, 8.0, 81.0], help="above 0, levels of 255")
    parser.add_argument("--light", type=float, nargs="*", default=[0.8, 1.2], help="factors, at least 0")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if min(given.noise, default=1) <= 0 or min(given.light, default=0) < 0 or 1 in given.light:
        parser.error("--noise takes numbers above 0, --light numbers of at least 0 other than 1: else nothing changes")
    parts, found = load(given.models, suite=given.suite), {}
    for name, policy in [("models", parts.policy), *((str(path), SmallPolicy.load(path)) for path in given.policies)]:
        one = sensitivity(parts, policy, given.starts, changes(given.noise, given.light, given.seed))
        rows = [[kind, *(f"{100 * row[key]:.1f}" for key in COLUMNS)] for kind, row in one["changes"].items()]
        table(f"{name}: {100 * one['success']:.1f} % succeed on true frames", ["change", *COLUMNS.values()], rows)
        found[name] = one
    print(json.dumps({"policies": found, "suite": given.suite, "starts": given.starts, "seed": given.seed}))


if __name__ == "__main__":
    main()
