"""Malformed inputs of many kinds: each is refused in one line, or what comes of it is right.

    python -P tests/fuzz/fuzz.py --cases 1000            # spread evenly over the areas
    python -P tests/fuzz/fuzz.py --only models --case 17 # one case again

Every area_<name>.py has a function `cases(rng)`, an endless generator that depends on nothing but rng.
"""

import argparse
import os
import random
import sys
from collections import Counter
from importlib import import_module
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
from cases import RIGHT, outcome_of  # noqa: E402

torch.set_num_threads(1)
AREAS = sorted(path.stem.removeprefix("area_") for path in HERE.glob("area_*.py"))
KINDS = (*RIGHT, "silent", "foreign", "crash", "hang")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=AREAS, help="one area")
    parser.add_argument("--case", type=int, help="one case of the area --only, by its number")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a case")
    given = parser.parse_args()
    areas = [given.only] if given.only else AREAS
    if given.case is not None and not given.only:
        parser.error("--case needs --only, the area")
    counts: dict[str, Counter] = {}
    for i, area in enumerate(areas):
        share = len(range(i, given.cases, len(areas)))
        counts[area] = run_area(area, given.seed, share, given.case, given.limit)
    print_table(counts)
    sys.exit(any(count[kind] for count in counts.values() for kind in KINDS if kind not in RIGHT))


def run_area(area: str, seed: int, count: int, only: int | None, limit_s: float) -> Counter:
    """Run `count` cases of an area, or the one with the number `only`; prints those that went wrong."""
    found = Counter()
    cases = import_module(f"area_{area}").cases(random.Random(f"{area} {seed}"))
    for number, case in enumerate(islice(cases, count if only is None else only + 1)):
        if only is not None and number != only:
            continue
        outcome = outcome_of(case, limit_s)
        found[outcome.kind] += 1
        if only is not None or not outcome.is_good:
            print(f"{outcome.kind}: {area} {number}: {case.name}\n    {outcome.detail}", flush=True)
    return found


def print_table(counts: dict[str, Counter]) -> None:
    """Area by kind of outcome."""
    print(f"{'area':14}" + "".join(f"{kind:>9}" for kind in (*KINDS, "all")))
    for area, count in (counts | {"all": sum(counts.values(), Counter())}).items():
        print(f"{area:14}" + "".join(f"{count[kind]:9}" for kind in KINDS) + f"{count.total():9}")


if __name__ == "__main__":
    main()
