"""Draw a file of benchmarks: how many times faster than each rival, and the waterfall if there is one.

python benchmarks/draw.py FILE.json -o FILE.png
"""

import argparse
import sys
from pathlib import Path

from document import load
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldenv.errors import UserError

GREY, BLUE = "0.75", "tab:blue"


def speedups(found: dict) -> dict[str, dict[str, float]]:
    """Benchmark -> rival -> how many times faster."""
    over = {bench["name"]: bench["extra_info"].get("speedup_over") for bench in found["benchmarks"]}
    return {name.removeprefix("bench_"): rivals for name, rivals in over.items() if rivals}


def waterfall(found: dict) -> dict[str, tuple[float, float]]:
    """Way of imagining -> episodes an hour, times faster than the first way."""
    rows = {bench["name"]: bench["extra_info"] for bench in found["benchmarks"] if bench.get("group") == "waterfall"}
    return {name: (facts["episodes_per_hour"], facts["speedup"]) for name, facts in rows.items()}


def draw_speedups(axes: Axes, over: dict[str, dict[str, float]]) -> None:
    kinds = list(dict.fromkeys(rival for rivals in over.values() for rival in rivals))
    for i, rival in enumerate(kinds):
        y, ratio, height = [], [], 0.8
        for row, rivals in enumerate(over.values()):
            if rival in rivals:
                thick = 0.8 / len(rivals)
                y.append(row + (list(rivals).index(rival) - (len(rivals) - 1) / 2) * thick)
                ratio.append(rivals[rival])
                height = min(height, thick)
        bars = axes.barh(y, ratio, 0.9 * height, color=f"C{i}", label=rival)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(over)), list(over))
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the rival (log scale)")
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(kinds), frameon=False)


def draw_waterfall(axes: Axes, ways: dict[str, tuple[float, float]]) -> None:
    values = [value for value, _ in ways.values()]
    bars = axes.barh(range(len(ways)), values, 0.7, color=[GREY] * (len(ways) - 1) + [BLUE])
    axes.bar_label(bars, [f"{value:,.0f}  ({ratio:.2f}x)" for value, ratio in ways.values()], padding=3, fontsize=8)
    axes.set_yticks(range(len(ways)), list(ways))
    axes.set_xlim(0, 1.35 * max(values))
    axes.invert_yaxis()
    axes.set_xlabel("imagined episodes an hour")


def draw(found: dict) -> Figure:
    """Raises UserError if the file has neither speedups nor a waterfall."""
    parts = [(draw_waterfall, waterfall(found)), (draw_speedups, speedups(found))]
    parts = [(function, data) for function, data in parts if data]
    if not parts:
        raise UserError("no benchmark of this file has a speedup over a rival, and none is of a waterfall")
    heights = [0.9 + 0.45 * len(data) for _, data in parts]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    axes = figure.subplots(len(parts), height_ratios=heights, squeeze=False)[:, 0]
    for (function, data), one in zip(parts, axes, strict=True):
        function(one, data)
        one.spines[["top", "right"]].set_visible(False)
    machine = found.get("machine_info", {}).get("worldenv", {})
    figure.suptitle(", ".join(f"{k} {v}" for k, v in machine.items() if k in ("torch", "cpu_isa", "card") and v))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="the picture; default: the file's name with .png")
    given = parser.parse_args()
    out = given.out or given.file.with_suffix(".png")
    try:
        draw(load(given.file)).savefig(out, dpi=150)
    except UserError as error:
        sys.exit(f"draw: {error}")
    print(out)


if __name__ == "__main__":
    main()
