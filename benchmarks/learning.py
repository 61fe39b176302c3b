"""Learning results over several seeds: `worldenv-train tabletop` once a seed, means, intervals and one JSON line.

    python benchmarks/learning.py [--seeds 0 1 2] [--name default] [-- any options of worldenv-train]
    python benchmarks/learning.py --compare default before-engine    (two series that are there, seed by seed)

Every seed has its own held-out start states. A run that already exists is not repeated, so an interrupted series can
be continued. The documents of all runs go to benchmarks/results/learning-<name>.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from worldenv.records.intervals import difference_interval, mean_interval
from worldenv.records.progress import table

RULES = ("oracle", "own_stop", "no_stop")


def run(seed: int, folder: Path, options: list[str]) -> dict:
    """One training run, or the result of the one that is there."""
    if (folder / "result.json").exists():
        found = json.loads((folder / "result.json").read_text())
        words = [word for word in found["command"].split() if word != "--resume"]
        if words[words.index("--run") + 2 :] != options:
            sys.exit(f"{folder} was made by {found['command']!r}: give another --name")
        return found | {"run": str(folder)}  # not the absolute path of this machine
    resume = ["--resume"] if folder.exists() else []
    command = [sys.executable, "-P", "-m", "worldenv", "tabletop", "--seed", str(seed), "--start-seed", str(seed)]
    command += ["--run", str(folder), *resume, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"run": str(folder)}


def summary(results: list[dict]) -> dict:
    """Means over seeds with t intervals, and each seed's difference with its Newcombe interval."""
    out: dict = {"seeds": [r["seed"] for r in results], "wall_s": [round(r["wall_s"], 1) for r in results]}
    for rule in RULES:
        before, after = ([r[f"success_{when}"][rule] for r in results] for when in ("before", "after"))
        gain = [b - a for a, b in zip(before, after, strict=True)]
        out[rule] = {"before": before, "after": after, "gain": gain, "mean_gain": sum(gain) / len(gain)}
        out[rule]["gain_interval"] = list(mean_interval(gain)) if len(gain) > 1 else None
        out[rule]["per_seed_interval"] = [list(_difference(r, rule)) for r in results]
    for name in ("imagined_minus_true", "false_stop", "missed_stop"):
        out[name] = [r[name]["after"] for r in results]
    return out


def compare(name: str, other: str) -> dict:
    """The gains of one series less those of the other, over the seeds that both have, with t intervals."""
    first, second = (json.loads(results(each).read_text())["summary"] for each in (name, other))
    seeds = sorted(set(first["seeds"]) & set(second["seeds"]))
    out: dict = {"seeds": seeds}
    for rule in RULES:
        a, b = ([part[rule]["gain"][part["seeds"].index(seed)] for seed in seeds] for part in (first, second))
        gap = [x - y for x, y in zip(a, b, strict=True)]
        means = {each: [sum(gain) / len(gain), *mean_interval(gain)] for each, gain in ((name, a), (other, b))}
        out[rule] = means | {"difference": [sum(gap) / len(gap), *mean_interval(gap)]}
    return out


def results(name: str) -> Path:
    return Path(__file__).parent / "results" / f"learning-{name}.json"


def _difference(result: dict, rule: str) -> tuple[float, float]:
    counts = []
    for when in ("after", "before"):
        part = result[f"success_{when}"]
        counts += [round(part[rule] * part["n"]), part["n"]]
    return difference_interval(*counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--name", default="default")
    parser.add_argument("--compare", nargs=2, metavar="NAME", help="train nothing")
    parser.add_argument("options", nargs="*", help="passed on to worldenv-train, after --")
    given = parser.parse_args()
    if given.compare:
        if absent := [str(results(name)) for name in given.compare if not results(name).exists()]:
            parser.error(f"there is no {' and no '.join(absent)}")
        print(json.dumps(compare(*given.compare)))
        return
    root = Path("runs") / f"learning-{given.name}"
    path = results(given.name)
    there = json.loads(path.read_text())["summary"]["seeds"] if path.exists() else []
    if lost := set(there) - set(given.seeds):
        parser.error(f"{path} has seeds {sorted(lost)}, too: give them as well, or another --name")
    runs = [run(seed, root / f"seed-{seed}", given.options) for seed in given.seeds]
    found = summary(runs)
    rows = []
    for rule in RULES:
        part = found[rule]
        for i, seed in enumerate(found["seeds"]):
            low, high = part["per_seed_interval"][i]
            cells = [100 * v for v in (part["before"][i], part["after"][i], part["gain"][i], low, high)]
            rows.append([rule, str(seed), *(f"{cell:.1f}" for cell in cells)])
    table(f"true success, {given.name}", ["rule", "seed", "before", "after", "gain", "low", "high"], rows)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"summary": found, "runs": runs}, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
