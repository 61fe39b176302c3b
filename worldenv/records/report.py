"""report.html: one file without external resources that shows what a run did and how well."""

import base64
import json
import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from worldenv import __version__
from worldenv.errors import UserError
from worldenv.files import read_bytes, write_text
from worldenv.records import figures
from worldenv.records.figures import AFTER, BEFORE, OTHER, Series
from worldenv.records.intervals import difference_interval, wilson_interval
from worldenv.records.page import STYLE, grid, missing, percent, policy_name, table
from worldenv.records.progress import human_seconds
from worldenv.records.report_consistency import consistency
from worldenv.records.run_folder import RunFolder

RULES = {"oracle": "Oracle stop", "own_stop": "Own stop", "no_stop": "No stop"}
RULE_MEANING = (
    "Oracle stop: the true environment ends an episode at its first success. Own stop: the policy's reflector ends it, "
    "and only the state it ends in counts. No stop: it runs to the horizon, and a success can be undone again."
)
POST_TRAIN = {  # metric -> (title, axis label, whether it is a share of 1)
    "reward": ("Imagined reward", "mean reward", True),
    "imagined_success": ("Imagined success", "share of rollouts", True),
    "loss": ("Policy loss", "loss", False),
    "clip_fraction": ("Clipped fraction", "share of chunks", False),
    "groups_without_signal": ("Groups without signal", "groups", False),
    "skipped_steps": ("Skipped steps", "steps", False),
}
VALIDATION = (("validation_imagined_success", "imagined", AFTER), ("validation_success", "true", OTHER))
CAPTION_BYTES, VIDEO_BYTES = 1 << 16, 1 << 28
NOT_PLOTTED = {"stage", "step", "time_s", "non_finite"}


def write_report(folder: RunFolder) -> Path:
    """Render result.json, metrics.jsonl, config.json and videos/*.webp into report.html, and return its path.

    A part without data is replaced by a sentence that says why. Serves training (before and after) and evaluation
    (one policy) alike. Raises UserError naming the file if one of them is damaged.
    """
    result = folder.result() or {}
    evaluations = _evaluations(result)
    sections = {
        "Success in the true environment": _success(evaluations),
        "Per task": _per_task(evaluations),
        "Learning curves": _learning_curves(folder, result),
        "Imagined against true": _imagined(folder, result, evaluations),
        "Consistency of imagination": consistency(result.get("consistency") or {}),
        "Stopping": _stopping(result),
        "World model quality": _world_quality(result.get("world_model") or {}),
        "Time": _time(result),
        "Videos": _videos(folder),
        "Other stages": _other_stages(folder),
        "Configuration": f"<pre>{escape(json.dumps(folder.config, indent=2, ensure_ascii=False))}</pre>",
        "How to reproduce": _reproduce(result),
    }
    name = str(result.get("run") or folder.path.name)
    body = "".join(f"<section><h2>{escape(title)}</h2>\n{html}</section>\n" for title, html in sections.items() if html)
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} - worldenv</title><style>{STYLE}</style></head>\n<body>"
        f'<h1>{escape(name)}</h1><p class="soft">{escape(_subtitle(result))}</p>\n{body}</body></html>\n'
    )
    path = folder.path / "report.html"
    write_text(path, document)
    return path


def _evaluations(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The evaluations by name, oldest first: before and after, or the only one."""
    names = {"success_before": "before", "success_after": "after", "success": "success"}
    return {name: result[key] for key, name in names.items() if result.get(key)}


def _success(evaluations: Mapping[str, dict[str, Any]]) -> str:
    if not evaluations:
        return missing("there is no evaluation in result.json: the run has not come to its end yet")
    first, last = list(evaluations.values())[0], list(evaluations.values())[-1]
    rules = [rule for rule in RULES if all(one.get(rule) is not None for one in evaluations.values())]
    if not rules:
        return missing("the evaluation in result.json has no success under any stopping rule")
    cards = "".join(_success_card(rule, first if len(evaluations) > 1 else None, last) for rule in rules)
    bars = {name: [(one[rule], *_interval(one, rule)) for rule in rules] for name, one in evaluations.items()}
    plot = figures.success_intervals([RULES[rule] for rule in rules], bars)
    return f'<div class="cards">{cards}</div><p class="soft">{RULE_MEANING}</p>{grid([plot])}'


def _success_card(rule: str, first: dict[str, Any] | None, last: dict[str, Any]) -> str:
    now = f'<span class="is">{100 * last[rule]:.1f} %</span>'
    low, high = _interval(last, rule)
    note = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %, {last['n']} episodes"
    if first is not None:
        now = f'<span class="was">{100 * first[rule]:.1f}</span> → {now}'
        low, high = difference_interval(*_counts(last, rule), *_counts(first, rule))
        gain = 100 * (last[rule] - first[rule])
        was_low, was_high = _interval(first, rule)
        note = (
            f"difference {gain:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}<br>"
            f"before {100 * was_low:.1f} to {100 * was_high:.1f} %, {first['n']} episodes<br>after {note[14:]}"
        )
    return f'<div class="card"><div>{RULES[rule]}</div><div class="big">{now}</div><div class="soft">{note}</div></div>'


def _counts(success: Mapping[str, Any], rule: str) -> tuple[int, int]:
    return round(success[rule] * success["n"]), success["n"]


def _interval(success: Mapping[str, Any], rule: str) -> tuple[float, float]:
    low, high = (success.get("intervals") or {}).get(rule) or wilson_interval(*_counts(success, rule))
    return low, high


def _per_task(evaluations: Mapping[str, dict[str, Any]]) -> str:
    by_name = {name: one["per_task"] for name, one in evaluations.items() if one.get("per_task")}
    if not by_name:
        return missing("result.json has no figures per task")
    tasks = list(dict.fromkeys(task for per_task in by_name.values() for task in per_task))
    plots, rows = [], []
    for rule in RULES:
        bars = {name: [one.get(task, {}).get(rule) for task in tasks] for name, one in by_name.items()}
        if rule != "no_stop" and any(value is not None for values in bars.values() for value in values):
            plots.append(figures.task_bars(tasks, bars, RULES[rule]))
    for task in tasks:
        ones = [one.get(task, {}) for one in by_name.values()]
        cells = (" → ".join(percent(one.get(key)) for one in ones) for key in (*RULES, "imagined"))
        rows.append([task, ones[-1].get("instruction", ""), ones[-1].get("n", ""), *cells])
    columns = ["Task", "Instruction", "Episodes", *(f"{title}, %" for title in (*RULES.values(), "Imagined"))]
    return grid(plots) + table(columns, rows, text_columns=(1,))


def _learning_curves(folder: RunFolder, result: Mapping[str, Any]) -> str:
    lines = folder.metrics("post_train")
    if not lines:
        return missing("metrics.jsonl has no lines of the stage post_train: nothing was post-trained in this run")
    logged = [key for key in POST_TRAIN if any(line.get(key) is not None for line in lines)]
    steps = [line["step"] for line in lines]
    plots = []
    for key in logged:
        title, label, share = POST_TRAIN[key]
        series = [Series(title, steps, [line.get(key) for line in lines])]
        plots.append(figures.lines(series, title, "iteration", label, share))
    absent = [title.lower() for key, (title, _, _) in POST_TRAIN.items() if key not in logged]
    note = f'<p class="missing">Not logged: {escape(", ".join(absent))}.</p>' if absent else ""
    bad = sum(len(line.get("non_finite", {})) for line in lines)
    note += f'<p class="soft">Values that were not finite, gaps in the curves: {bad}.</p>' if bad else ""
    return grid(plots) + _signal_counts(result.get("counts") or {}) + _rounds(result.get("rounds") or {}) + note


def _signal_counts(counts: Mapping[str, Any]) -> str:
    if not counts:
        return ""
    groups, silent, skipped = (counts.get(key, "?") for key in ("groups", "groups_without_signal", "skipped_steps"))
    text = (
        f"{silent} of {groups} groups were without signal (no sibling's advantage reached --rl.signal); "
        f"{skipped} update steps were skipped because their loss or gradient was not finite."
    )
    return f"<p>{escape(text)}</p>"


def _rounds(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    text = (
        f"Practice went in {found.get('rounds', '?')} rounds. Between them world model and reflector were trained on, "
        f"with {found.get('true_episodes', '?')} true episodes of the policy."
    )
    return f"<p>{escape(text)}</p>"


def _imagined(folder: RunFolder, result: Mapping[str, Any], evaluations: Mapping[str, dict[str, Any]]) -> str:
    imagined, gap = _by_name(result.get("imagined_success")), _by_name(result.get("imagined_minus_true"))
    columns = ["Policy", "Imagined, %", "Imagined minus true, points", "True, oracle stop, %", "True, own stop, %"]
    rows = []
    for name, value in imagined.items():
        true = evaluations.get(name, {})
        points = "" if gap.get(name) is None else f"{100 * gap[name]:+.1f}"
        shares = [percent(true.get(rule)) for rule in ("oracle", "own_stop")]
        rows.append([policy_name(name), percent(value), points, *shares])
    html = table(columns, rows) if rows else ""
    lines = folder.metrics("post_train")
    checked = [line for line in lines if line.get("validation_success") is not None]
    if checked:
        steps, imagined = [line["step"] for line in lines], [line.get("imagined_success") for line in lines]
        at = [line["step"] for line in checked]
        series = [Series("imagined, rollouts", steps, imagined, BEFORE)] + [
            Series(f"{label}, validation", at, [line.get(key) for line in checked], color, dots=True)
            for key, label, color in VALIDATION
            if any(line.get(key) is not None for line in checked)
        ]
        plot = figures.lines(series, "Success while post-training", "iteration", "share of episodes", True)
        html += grid([plot])
    return html or missing("neither imagined success nor validation success was measured in this run")


def _stopping(result: Mapping[str, Any]) -> str:
    false, missed = _by_name(result.get("false_stop")), _by_name(result.get("missed_stop"))
    if not false and not missed:
        return missing("result.json has no false-stop and missed-stop rates")
    rows = [[policy_name(name), percent(false.get(name)), percent(missed.get(name))] for name in false | missed]
    return table(["Policy", "False stops, %", "Missed stops, %"], rows) + (
        '<p class="soft">A false stop ends an episode that has not succeeded; a missed stop lets a success pass.</p>'
    )


def _world_quality(quality: Mapping[str, Any]) -> str:
    plots = []
    for key, label in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS")):
        values = quality.get(key) or []
        if any(value is not None for value in values):
            series = [Series(label, range(1, len(values) + 1), values)]
            plots.append(figures.lines(series, label, "chunk of the episode", label))
    whole = [f"{name.upper()} {quality[name]:.1f}" for name in ("fid", "fvd") if quality.get(name) is not None]
    note = f"<p>{', '.join(whole)}, imagined against true frames.</p>" if whole else ""
    return grid(plots) + note if plots else missing("the world model was not measured in this run")


def _time(result: Mapping[str, Any]) -> str:
    shares = {name: share for name, share in (result.get("time_shares") or {}).items() if share is not None}
    total = f"<p>Wall time {human_seconds(result['wall_s'])}.</p>" if result.get("wall_s") is not None else ""
    if not shares:
        return total + missing("result.json has no time shares")
    rest = 1 - math.fsum(shares.values())
    return total + grid([figures.time_bars(shares | {"other": rest} if rest >= 0.005 else shares)])


def _videos(folder: RunFolder) -> str:
    items = []
    for path in sorted(folder.videos.glob("*.webp")):
        note = path.with_suffix(".txt")
        caption = path.stem.replace("_", " ")
        if os.path.lexists(note):
            caption = _own_bytes(note, CAPTION_BYTES).decode("utf-8", "replace")
        data = base64.b64encode(_checked_video(path)).decode("ascii")
        picture = f'<img src="data:image/webp;base64,{data}" alt="{escape(caption)}">'
        items.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    return f'<div class="grid">{"".join(items)}</div>' if items else missing("the folder videos/ has no .webp file")


def _checked_video(path: Path) -> bytes:
    data = _own_bytes(path, VIDEO_BYTES)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or int.from_bytes(data[4:8], "little") + 8 != len(data):
        raise UserError(f"{path} is no complete WebP file: remove it, or restore it from a copy")
    return data


def _own_bytes(path: Path, limit: int) -> bytes:
    """Of a file that is no link: the report would carry what the link leads to, a file from outside the run."""
    if path.is_symlink():
        raise UserError(f"{path} is a link; the report shows files of the run only: remove it, or put the file there")
    return read_bytes(path, limit)


def _other_stages(folder: RunFolder) -> str:
    html = ""
    for stage in folder.stages():
        if stage == "post_train":
            continue
        lines = folder.metrics(stage)
        plots = []
        for key in dict.fromkeys(key for line in lines for key in line if key not in NOT_PLOTTED):
            points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
            if points:
                series = [Series(key, *zip(*points, strict=True))]
                plots.append(figures.lines(series, key.replace("_", " "), "step", key.replace("_", " ")))
        html += f"<h3>{escape(stage.replace('_', ' '))}</h3>" + (grid(plots) or missing("it logged no numbers"))
    return html


def _reproduce(result: Mapping[str, Any]) -> str:
    if not result.get("command"):
        return missing("result.json does not hold the command line of the run")
    seeds = [f"{name} {result[key]}" for key, name in (("seed", "seed"), ("start_seed", "start seed")) if key in result]
    version = f"worldenv {__version__}" + (f", {', '.join(seeds)}" if seeds else "")
    return f'<pre>{escape(result["command"])}</pre><p class="soft">{escape(version)}</p>'


def _subtitle(result: Mapping[str, Any]) -> str:
    parts = [f"{name} {result[key]}" for key, name in (("seed", "seed"), ("start_seed", "start seed")) if key in result]
    if result.get("wall_s") is not None:
        parts.append(human_seconds(result["wall_s"]))
    return " · ".join(parts) or "unfinished run"


def _by_name(value: Any) -> dict[str, float]:
    """Values by evaluation; an evaluation alone may give a bare number. The count `n` is no evaluation."""
    if isinstance(value, Mapping):
        return {name: rate for name, rate in value.items() if name != "n" and rate is not None}
    return {} if value is None else {"success": value}
