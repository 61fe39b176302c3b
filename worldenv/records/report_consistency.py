"""The section of a report that says whether imagination tells the truth."""

from collections.abc import Mapping
from html import escape
from typing import Any

from worldenv.records import figures
from worldenv.records.figures import AFTER, BEFORE, OTHER, Series
from worldenv.records.page import grid, missing, percent, policy_name, table

LOOKS = {"imagined": AFTER, "replayed": OTHER, "true": BEFORE}  # of the frames of an episode
CONSISTENCY = {  # place in an evaluation's figures, {} being one of LOOKS -> what it is
    "things.moved_thing.{}.below_60": "Moved thing: less than 60 % of it is left",
    "things.moved_thing.{}.below_35": "Moved thing: less than 35 %",
    "things.moved_thing.{}.two_places": "Moved thing: in two places",
    "reflector.{}.ece": "Reflector: calibration error (ECE)",
    "reflector.{}.false_stop": "Reflector: false stops",
    "reflector.{}.missed_stop": "Reflector: missed stops",
}
CAPTION_BYTES, VIDEO_BYTES = 1 << 16, 1 << 28


def consistency(found: Mapping[str, Any]) -> str:
    parts = {name: part for name, part in (found if "agreement" not in found else {"success": found}).items() if part}
    if not parts:
        return missing("result.json does not say how well imagination agrees with the truth")
    rows, last = [], list(parts.values())[-1]
    for place, label in CONSISTENCY.items():
        cells = [[_at(part, place.format(look)) for part in parts.values()] for look in LOOKS]
        if any(value is not None for values in cells for value in values):
            rows.append([label, *(" → ".join(map(percent, values)) for values in cells)])
    html = table(["Frames", *(f"{look.capitalize()}, %" for look in LOOKS)], rows)
    html += "".join(f"<p>{escape(_agreement(name, part))}</p>" for name, part in parts.items())
    series = []
    for look, color in LOOKS.items():
        if shares := _at(last, f"things.by_chunk.{look}.moved.below_60"):
            series.append(Series(look, range(1, len(shares) + 1), shares, color))
    title = "Moved things of which less than 60 % is left"
    return html + grid(
        [figures.lines(series, title, "chunk of the episode", "share of things", True)] if series else []
    )


def _at(part: Any, place: str) -> Any:
    for key in place.split("."):
        part = part.get(key) if isinstance(part, Mapping) else None
    return part


def _agreement(name: str, part: Mapping[str, Any]) -> str:
    share, mean, largest = (percent(_at(part, f"agreement.{key}")) for key in ("share", "mean_gap", "largest_gap"))
    chance, n = percent(_at(part, "agreement.mean_gap_by_chance")), _at(part, "agreement.n")
    begins = [f"{phase} {count}" for phase, count in (_at(part, "agreement.begins") or {}).items() if count]
    return (
        f"{policy_name(name).capitalize()}: imagined and true outcome agree in {share} % of {n} episodes. Imagined "
        f"success of a task is {mean} points from the true one on average ({chance} by chance alone), at most "
        f"{largest}. "
        + (f"Where outcomes differ, the episodes part in: {', '.join(begins)}. " if begins else "")
        + _guard(part)
    )


def _guard(part: Mapping[str, Any]) -> str:
    auroc, interval = _at(part, "guard.auroc"), _at(part, "guard.interval")
    if auroc is None:
        return ""
    low_high = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    return (
        f"How unsure imagination is of an episode tells a wrong outcome from a right one with an AUROC of {auroc:.2f}"
        f"{low_high} (0.5: not at all, 1: always)."
    )
