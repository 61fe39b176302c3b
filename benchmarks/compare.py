"""Two files of benchmarks, side by side.

    python benchmarks/compare.py BEFORE.json AFTER.json

A row is marked with * if the middle halves of its rounds do not overlap and the change is more than 10 %. The state of
a machine differs between two runs, so a ratio of two times is less certain than the speedups over the rivals, which
were timed in turns (last column). `pytest-benchmark compare` shows the other numbers.
"""

import argparse
import sys
from pathlib import Path

from document import load

from worldenv.errors import UserError

CHANGE = 1.1


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def beyond_noise(before: dict, after: dict) -> bool:
    """Whether two sets of rounds differ by more than their own spread, and enough to care."""
    apart = before["q3"] < after["q1"] or after["q3"] < before["q1"]
    ratio = before["median"] / after["median"]
    return apart and not 1 / CHANGE < ratio < CHANGE


def rivals(one: dict, other: dict) -> str:
    """The speedups over the rivals that both have, before -> after."""
    over = [bench["extra_info"].get("speedup_over", {}) for bench in (one, other)]
    return ", ".join(f"{name} {over[0][name]:.2f} -> {over[1][name]:.2f}" for name in over[0] if name in over[1])


def compare(before: dict, after: dict) -> list[list[str]]:
    """Rows: name, time before, time after, before / after, mark, over its rivals. The order is that of `after`."""
    old = {bench["fullname"]: bench for bench in before["benchmarks"]}
    rows = []
    for bench in after["benchmarks"]:
        now, was = bench["stats"], old.pop(bench["fullname"], None)
        if was is None:
            rows.append([bench["name"], "-", milliseconds(now["median"]), "-", "only after", ""])
            continue
        mark = "*" if beyond_noise(was["stats"], now) else ""
        ratio = was["stats"]["median"] / now["median"]
        times = [milliseconds(stats["median"]) for stats in (was["stats"], now)]
        rows.append([bench["name"], *times, f"{ratio:.2f}x", mark, rivals(was, bench)])
    gone = [[b["name"], milliseconds(b["stats"]["median"]), "-", "-", "only before", ""] for b in old.values()]
    return rows + gone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    try:
        before, after = load(given.before), load(given.after)
    except UserError as error:
        sys.exit(f"compare: {error}")
    machines = [found.get("machine_info", {}).get("worldenv", {}) for found in (before, after)]
    for name in sorted(machines[0].keys() & machines[1].keys()):
        if machines[0][name] != machines[1][name]:
            print(f"not the same {name}: {machines[0][name]} and {machines[1][name]}")
    rows = [["", "before", "after", "before/after", "", "speedup over a rival"], *compare(before, after)]
    width = max(len(row[0]) for row in rows)
    for name, *times, ratio, mark, over in rows:
        print(f"{name:<{width}} {times[0]:>10} {times[1]:>10} {ratio:>13} {mark:<11} {over}".rstrip())


if __name__ == "__main__":
    main()
