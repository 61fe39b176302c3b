"""How often the scripted expert solves every task of LIBERO, from the official initial states.

    python benchmarks/libero_expert.py [--starts 20] [--suites libero_goal ...] [--output FOLDER] [--noise 0.3]

The same command goes on where it was interrupted, and with more --starts adds to what is there. The expert is disturbed
as by `worldenv-collect`. An episode that takes more actions than the horizon of the suite has failed. The last line of
stdout is one JSON document.
"""

import argparse
import json

from worldenv.commands.collect import collect, parsed
from worldenv.records.intervals import wilson_interval
from worldenv.suites.libero.tasks import STANDARD

OFTEN = 0.9


def measured(suite: str, given: argparse.Namespace) -> dict:
    words = [suite, "--measure", str(given.starts), "--noise", str(given.noise), "--size", "32"]
    words += ["--output", f"{given.output}/{suite}"]
    if given.workers is not None:
        words += ["--workers", str(given.workers)]
    return collect(parsed(words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", nargs="+", default=list(STANDARD))
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output", default="libero_expert")
    given = parser.parse_args()
    tasks, about = [], {}
    for suite in given.suites:
        found = measured(suite, given)
        tasks += [{"suite": suite, **task} for task in found["tasks"]]
        about[suite] = found["about"]
    success, episodes = (sum(task[name] for task in tasks) for name in ("success", "episodes"))
    often = sum(task["success"] >= OFTEN * task["episodes"] for task in tasks)
    out = {"starts": given.starts, "noise": given.noise, "success": success, "episodes": episodes}
    out |= {"interval": wilson_interval(success, episodes), "solved_often": often, "of_tasks": len(tasks)}
    print(json.dumps(out | {"tasks": tasks, "about": about}))


if __name__ == "__main__":
    main()
