"""The plots of the report, as SVG with the colours of the page, so that one figure fits light and dark."""

import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_screen = os.environ.pop("MPLBACKEND", None)  # of a notebook, maybe: importing matplotlib fails where there is no such
from matplotlib import style  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

if _screen is not None:
    os.environ["MPLBACKEND"] = _screen

# Drawn in stand-in colours that become the page's CSS variables, so that figures follow light and dark.
INK, GRID, BEFORE, AFTER, OTHER = "#010101", "#010102", "#010103", "#010104", "#010105"
VARIABLES = {INK: "--ink", GRID: "--grid", BEFORE: "--before", AFTER: "--after", OTHER: "--other"}
LONGEST_LABEL = 32  # characters, so that room is left for the plot
WIDTH_IN = 4.6  # narrow, so that letters stay legible on a phone
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.transparent": True,
    "lines.linewidth": 1.6,
}
ALONE = ["default", STYLE]  # whatever the user's own matplotlibrc says


@dataclass(frozen=True)
class Series:
    """One line of a plot: its points (None is a gap), stand-in colour and whether it is drawn as dots only."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str = AFTER
    dots: bool = False


@style.context(ALONE)
def success_intervals(
    rules: Sequence[str],
    bars: Mapping[str, Sequence[tuple[float, float, float]]],  # name -> per rule (value, low, high), shares of 1
) -> str:
    """One row per rule: a dot with its 95 % interval for each evaluation."""
    figure, axes = _new(height_in=0.55 + 0.5 * len(rules))
    for i, (name, points) in enumerate(bars.items()):
        y = [row + _offset(i, len(bars), 0.26) for row in range(len(rules))]
        value, low, high = ([100 * point[j] for point in points] for j in range(3))
        color = _color(i, len(bars))
        axes.hlines(y, low, high, color=color, linewidth=2.2)
        axes.plot(value, y, "o", color=color, markersize=6, label=name)
        for at, row in zip(value, y, strict=True):
            # Above the dot for the upper series and below for the lower one, clear of both interval lines.
            axes.annotate(f"{at:.0f}", (at, row), (0, 5 if i == 0 else -12), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rules)), rules)
    axes.set_ylim(len(rules) - 0.4, -0.6)
    _percent_axis(axes, "success (%), with 95 % interval")
    return _svg(figure, axes, "Success by stopping rule", legend=len(bars) > 1)


@style.context(ALONE)
def task_bars(
    tasks: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],  # name -> success per task, share of 1
    title: str,
) -> str:
    """Horizontal bars, one group per task."""
    figure, axes = _new(height_in=0.75 + 0.3 * len(tasks))
    thickness = 0.76 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        y = [row + _offset(i, len(bars), thickness) for row in range(len(tasks))]
        widths = [100 * (value or 0.0) for value in values]
        axes.barh(y, widths, thickness * 0.9, color=_color(i, len(bars)), label=name)
    axes.set_yticks(range(len(tasks)), map(_label, tasks))
    axes.set_ylim(len(tasks) - 0.45, -0.55)
    _percent_axis(axes, "success (%)")
    return _svg(figure, axes, title, legend=len(bars) > 1)


@style.context(ALONE)
def lines(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    unit_interval: bool = False,  # the values are shares of 1: the axis then shows all of 0..1
) -> str:
    """Lines over a shared whole-number axis."""
    figure, axes = _new(height_in=2.3)
    for one in series:
        y = [float("nan") if value is None else value for value in one.y]
        # A lone point between gaps has no line to show it, so short series get markers.
        marker = "o" if one.dots or len(y) <= 12 else None
        line = "none" if one.dots else "-"
        axes.plot(one.x, y, linestyle=line, marker=marker, markersize=4, color=one.color, label=_label(one.label))
    if unit_interval:
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    counts = all(isinstance(value, int) for one in series for value in one.y)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=counts))
    axes.set_xlabel(_label(x_label))
    axes.set_ylabel(_label(y_label))
    axes.grid(axis="y")
    return _svg(figure, axes, title, legend=len(series) > 1)


@style.context(ALONE)
def time_bars(shares: Mapping[str, float]) -> str:
    """Where the wall time went: one bar per part, labelled with its share."""
    figure, axes = _new(height_in=0.6 + 0.28 * len(shares))
    names, values = list(shares), [100 * share for share in shares.values()]
    axes.barh(range(len(names)), values, 0.62, color=AFTER)
    for row, value in enumerate(values):
        axes.annotate(f"{value:.0f} %", (value, row), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), map(_label, names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    _percent_axis(axes, "share of wall time (%)")
    return _svg(figure, axes, "Time", legend=False)


def _new(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _label(name: str) -> str:
    """A name of the user's own as a plot can show it: matplotlib takes no half of a surrogate pair."""
    shown = "".join(c if c.isprintable() else " " for c in name)
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 3]}..."


def _color(i: int, count: int) -> str:
    """Before is grey and after the accent; a lone evaluation is the accent."""
    return AFTER if i == count - 1 else BEFORE


def _offset(i: int, count: int, step: float) -> float:
    return (i - (count - 1) / 2) * step


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_xlim(0, 104)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(label)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _svg(figure: Figure, axes: Axes, title: str, legend: bool) -> str:
    metadata: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    axes.set_title(_label(title), pad=20 if legend else 6)
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, borderaxespad=0, handlelength=1.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing in a font that the page does not use
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    # The page scales a figure to its column: a fixed size in points would overflow a phone.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", '<svg role="img"', 1)
