"""How much do a policy's outcomes depend on noise in its pictures? A yardstick for the agreement of imagination.

    python benchmarks/sensitivity.py [--models FOLDER] [--policies FILE ...] [--starts 1000] [--noise 2 5 8]

Each policy acts in the true suite with its mean action, on the validation starts of `consistency.py`: once on the true
frames, and once for each standard deviation (of 255 levels) of white noise that is added to the frames that it sees.
The last line of stdout is one JSON document.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from types import MethodType

import numpy as np
import torch
from consistency import FIRST_START
from torch import Tensor

from worldenv.assemble import Parts, load
from worldenv.evaluation.measure import in_turn
from worldenv.evaluation.truth import act_in_true
from worldenv.interfaces.observation import Observation
from worldenv.policy.small import SmallPolicy
from worldenv.records.intervals import wilson_interval
from worldenv.records.progress import table


def noisy(policy: SmallPolicy, deviation: float, seed: int) -> SmallPolicy:
    """The policy, from now on with white noise on its frames; `deviation` is in levels of 255."""
    draw = torch.Generator().manual_seed(seed)

    def see(self: SmallPolicy, seen: Observation, read: Tensor) -> Tensor:
        noise = deviation * torch.randn(seen.frames.shape, generator=draw)
        frames = (seen.frames + noise).round().clamp(0, 255).to(torch.uint8)
        return SmallPolicy.see(self, replace(seen, frames=frames), read)

    policy.see = MethodType(see, policy)
    return policy


def sensitivity(parts: Parts, policy: SmallPolicy, starts: int, deviations: list[float], seed: int) -> list[dict]:
    """For each deviation: success, and how many outcomes are those of the true frames."""
    tasks = in_turn(parts.suite, starts)
    numbers = [FIRST_START + i // len(parts.suite.tasks) for i in range(starts)]

    def outcomes(deviation: float) -> np.ndarray:
        acted = act_in_true(noisy(policy, deviation, seed), parts.suite, tasks, numbers, "validation")
        return np.array([episode.success.any() for episode in acted])

    true, found = outcomes(0.0), []
    for deviation in deviations:
        other = outcomes(deviation)
        same = int((other == true).sum())
        found.append(
            {
                "noise": deviation,
                "psnr_db": 20 * math.log10(255 / deviation),
                "success": float(other.mean()),
                "success_without": float(true.mean()),
                "agreement": same / starts,
                "interval": wilson_interval(same, starts),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=None, help="folder of the models; default: the shipped ones")
    parser.add_argument("--policies", type=Path, nargs="*", default=[], help="more policies, beside that of the models")
    parser.add_argument("--starts", type=int, default=1000, help="of each policy, over the tasks in turn")
    parser.add_argument("--noise", type=float, nargs="+", default=[2.0, 5.0, 8.0], help="above 0, levels of 255")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if min(given.noise) <= 0:
        parser.error("--noise takes numbers above 0: without noise, outcomes are the same")
    parts, found = load(given.models), {}
    for name, policy in [("models", parts.policy), *((str(path), SmallPolicy.load(path)) for path in given.policies)]:
        found[name] = sensitivity(parts, policy, given.starts, given.noise, given.seed)
        columns = (
            ("noise", "{:g}", 1),
            ("psnr_db", "{:.1f}", 1),
            ("success", "{:.1f}", 100),
            ("agreement", "{:.1f}", 100),
        )
        rows = [[form.format(factor * one[key]) for key, form, factor in columns] for one in found[name]]
        table(name, ["noise", "PSNR, dB", "success, %", "agreement, %"], rows)
    print(json.dumps({"policies": found, "starts": given.starts, "seed": given.seed}))


if __name__ == "__main__":
    main()
