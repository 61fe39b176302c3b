"""The report of a realistic run, of an evaluation, and of runs with missing parts."""

import html.parser
import math
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from worldenv.records import figures
from worldenv.records.intervals import difference_interval, wilson_interval
from worldenv.records.report import write_report
from worldenv.records.run_folder import RunFolder
from worldenv.records.video import side_by_side, write_video

TASKS = {
    "pick_red": "put the red block on the plate",
    "push_blue": "push the blue block to the left edge",
    "stack": "stack the green block on the yellow block",
    "drawer": "open the drawer & put the <cup> in it",
}
COMMAND = 'worldenv-train tabletop --run "a & <b>" --seed 3'


def success(oracle, own_stop, no_stop, n=500):
    rates = {"oracle": oracle, "own_stop": own_stop, "no_stop": no_stop}
    per_task = {
        task: {rule: min(1.0, rate * (0.8 + 0.13 * i)) for rule, rate in rates.items()}
        | {"n": n // len(TASKS), "instruction": instruction, "imagined": oracle / 2 if i else None}
        for i, (task, instruction) in enumerate(TASKS.items())
    }
    intervals = {rule: list(wilson_interval(round(rate * n), n)) for rule, rate in rates.items()}
    return rates | {"n": n, "intervals": intervals, "per_task": per_task}


def consistency(below_60):
    moved = {"below_60": below_60, "below_35": 0.16, "two_places": 0.05, "n": 540}
    by_chunk = {
        "moved": {"n": [9, 9], "below_60": [None, below_60]},
        "untouched": {"n": [0, 0], "below_60": [None, None]},
    }
    error = {"ece": 0.081, "false_stop": 0.01, "missed_stop": 0.2}
    return {
        "agreement": {"share": 0.79, "n": 200, "mean_gap": 0.113, "mean_gap_by_chance": 0.07, "largest_gap": 0.32}
        | {"begins": {"grasp": 20, "carry": 4, "push": 0}},
        "guard": {"auroc": 0.756, "interval": [0.7, 0.812], "n": 200, "n_wrong": 42, "right": 0.2, "wrong": 0.4},
        "reflector": {"replayed": error, "true": error | {"ece": 0.054}},
        "things": {
            name: dict.fromkeys(("imagined", "replayed", "true"), part)
            for name, part in (("moved_thing", moved), ("by_chunk", by_chunk))
        },
    }


def train_result():
    return {
        "success_before": success(0.522, 0.468, 0.392),
        "success_after": success(0.714, 0.702, 0.61),
        "imagined_success": {"before": 0.44, "after": 0.65, "n": 256},
        "imagined_minus_true": {"before": -0.082, "after": -0.064},
        "false_stop": {"before": 0.034, "after": 0.041},
        "missed_stop": {"before": 0.087, "after": 0.052},
        "consistency": {"before": consistency(0.57), "after": consistency(0.61)},
        "world_model": {
            "psnr": [33.1, 31.0, 29.8, 29.0, 28.4, 28.1],
            "ssim": [0.97, 0.95, 0.94, 0.93, 0.92, 0.92],
            "lpips": [0.02, 0.03, 0.03, 0.04, 0.04, 0.05],
            "fid": 21.34,
        },
        "wall_s": 571.0,
        "time_shares": {"rollout": 0.58, "update": 0.17, "evaluate": 0.2, "report": 0.01},
        "seed": 3,
        "start_seed": 40,
        "run": "<tabletop>-seed3",
        "command": COMMAND,
        "counts": {"skipped_steps": 2, "groups_without_signal": 111, "groups": 1080},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of 45 iterations with two videos and one other stage, as worldenv-train leaves it, not yet evaluated."""
    rng = np.random.default_rng(0)
    config = {"seed": 3, "post_train": {"siblings": 8, "clip": 0.1}}
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "tabletop-seed3", config)
    for i in range(60):
        run.log("train_simulator", i * 100, loss=0.4 * math.exp(-i / 15) + 0.02 * rng.random(), psnr=20 + 8 * i / 60)
    for i in range(45):
        run.log(
            "post_train",
            i,
            reward=0.4 + 0.006 * i + 0.03 * rng.standard_normal(),
            imagined_success=0.44 + 0.005 * i + 0.02 * rng.standard_normal(),
            rollout_s=7.5,
            update_s=2.1,
            loss=float("nan") if i == 20 else -0.02 * rng.random(),
            clip_fraction=0.1 * rng.random(),
            groups_without_signal=int(rng.integers(0, 6)),
            skipped_steps=int(i == 20),
            **({"validation_success": 0.5 + 0.2 * i / 45} if i % 10 == 0 else {}),
        )
    frames = rng.integers(0, 255, (2, 30, 64, 64, 3), np.uint8)
    curves = [np.linspace(0.05, 0.7, 30), np.linspace(0.1, 0.4, 30)]
    video = side_by_side(list(frames), ["imagined: put the red block on the plate", "true"], curves, [22, None])
    write_video(run.videos / "after_pick_red.webp", video, 10, caption="After: pick <red>, start 7")
    write_video(run.videos / "before_stack.webp", video[:12], 10)
    yield run
    run.close()


class Reader(html.parser.HTMLParser):
    """Collects text and attributes, and fails on a tag that is closed out of turn."""

    VOID = {"meta", "img", "br"}

    def __init__(self, document):
        super().__init__()
        self.open, self.texts, self.attributes, self.tags = [], [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(folder):
    document = write_report(folder).read_text(encoding="utf-8")
    return document, Reader(document)


@pytest.fixture(scope="module")
def report(folder):
    """The page of the finished run and its reader."""
    folder.write_result(train_result())
    return read(folder)


def test_report_of_a_training_run_shows_every_section_with_its_figures(report):
    _, reader = report
    for heading in (
        "Success in the true environment",
        "Per task",
        "Learning curves",
        "Imagined against true",
        "Consistency of imagination",
        "Stopping",
        "World model quality",
        "Time",
        "Videos",
        "Other stages",
        "Configuration",
        "How to reproduce",
    ):
        assert heading in reader.texts
    assert "Left out" not in reader.text
    assert "9 min 31 s" in reader.text and "gaps in the curves: 1." in reader.text
    assert "111 of 1080 groups" in reader.text and "FID 21.3, imagined against true" in reader.text
    assert "26.1 → 35.7" in reader.texts and "– → –" in reader.texts  # imagined, per task
    assert "57.0 → 61.0" in reader.texts and "8.1 → 8.1" in reader.texts and "5.4 → 5.4" in reader.texts
    assert "agree in 79.0 % of 200 episodes" in reader.text and "part in: grasp 20, carry 4." in reader.text
    # Headline 1, tasks 2, learning 6, imagined 1, consistency 1, simulator 3, time 1, other stage 2.
    assert reader.tags.count("svg") == 17
    assert reader.tags.count("img") == 2
    # The bars stand for 0.522 and 0.714, and the difference interval is that of the two counts.
    low, high = difference_interval(357, 500, 261, 500)
    assert f"difference +19.2 points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}" in reader.text


def test_report_needs_nothing_from_outside_the_file(report):
    document, reader = report
    links = [value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert len(links) > 2
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert not re.search(r"url\((?!#)|@import", document)


def test_figures_take_their_colours_from_the_page_in_light_and_dark(report):
    document, _ = report
    for variable in ("--ink", "--grid", "--before", "--after", "--other"):
        assert document.count(f"{variable}:") == 2  # light and dark
        assert f"var({variable})" in document
    plots = "".join(re.findall(r"<svg.*?</svg>", document, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", plots)) == set()


def test_all_text_is_escaped(report):
    _, reader = report
    for text in (COMMAND, "<tabletop>-seed3", "open the drawer & put the <cup> in it", "After: pick <red>, start 7"):
        assert text in reader.text
    assert "before stack" in reader.text
    assert not {"b", "cup", "red", "tabletop"} & set(reader.tags)


def test_figure_text_with_markup_is_shown_as_it_is():
    plot = figures.task_bars(["<b>a$x", "c & $d$"], {"success": [0.5, None]}, "$\\frac$ <i>")
    assert {"<b>a$x", "c & $d$", "$\\frac$ <i>"} <= set(Reader(plot).texts)


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31m\0", "a\nb", "日本語 😀", "x" * 5000, "_hidden", "$\\frac{a", ""])
def test_name_of_any_kind_leaves_room_for_the_plot_and_raises_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots = [
            figures.task_bars([name, "b"], {"before": [0.5, 1.0], "after": [0.5, None]}, name),
            figures.lines([figures.Series(name, [1, 2], [0.5, 1.0])], name, name, name),
            figures.time_bars({name: 0.5}),
        ]
    assert all(0 < len(plot.encode()) < 40_000 for plot in plots)


@pytest.mark.parametrize(
    "settings", [{"MPLBACKEND": "nonsense"}, {"MATPLOTLIBRC": "text.usetex: True\nfont.size: 30\n"}]
)
def test_matplotlib_settings_of_the_user_change_no_plot(tmp_path, settings):
    draw = "from worldenv.records import figures; print(figures.task_bars(['a'], {'now': [0.5]}, 'a'))"
    if "MATPLOTLIBRC" in settings:
        (tmp_path / "matplotlibrc").write_text(settings["MATPLOTLIBRC"])
        settings = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("M")}
    plots = [
        subprocess.run([sys.executable, "-c", draw], env=environment | more, capture_output=True, text=True)
        for more in (settings, {})
    ]
    assert plots[0].returncode == 0, plots[0].stderr
    assert re.sub(r"[pm][0-9a-f]{10}", "", plots[0].stdout) == re.sub(r"[pm][0-9a-f]{10}", "", plots[1].stdout)  # ids


def test_report_of_an_evaluation_shows_one_policy_without_a_difference(tmp_path):
    run = RunFolder.create(tmp_path / "evaluation", {"seed": 0})
    result = train_result()
    result["success"] = result.pop("success_after")
    del result["success_before"], result["time_shares"], result["world_model"], result["counts"]
    result["consistency"] = consistency(0.61)
    result |= {"imagined_success": 0.65, "imagined_minus_true": -0.064, "false_stop": 0.041, "missed_stop": 0.052}
    run.write_result(result)
    _, reader = read(run)
    assert "71.4 %" in reader.text and "difference" not in reader.text and "→" not in reader.text
    assert "65.0 -6.4 71.4 70.2" in reader.text and "4.1 5.2" in reader.text
    assert reader.text.count("Left out") == 4  # learning curves, simulator, time shares, videos
    assert "Moved thing: in two places 5.0 5.0 5.0" in reader.text
    assert reader.text.count("with an AUROC of 0.76 [0.70, 0.81]") == 1
    assert reader.tags.count("svg") == 4


def test_report_of_a_run_that_was_killed_says_what_is_missing_and_why(folder):
    (folder.path / "result.json").unlink(missing_ok=True)
    _, reader = read(folder)
    assert "the run has not come to its end yet" in reader.text
    assert "Imagined reward" in reader.texts and "unfinished run" in reader.text


def test_report_of_an_empty_run_draws_no_empty_plot(tmp_path):
    _, reader = read(RunFolder.create(tmp_path / "empty", {}))
    assert reader.tags.count("svg") == 0
    assert reader.text.count("Left out") == 10


def test_success_before_is_grey_and_after_is_the_accent():
    plot = figures.task_bars(["a"], {"before": [0.25], "after": [0.5]}, "success")
    paths = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*fill: var\((--\w+)\)', plot)
    widths = {color: float(right) - float(left) for left, right, color in reversed(paths)}  # the legend comes last
    assert widths["--after"] == pytest.approx(2 * widths["--before"], rel=1e-3)


def test_gap_in_a_curve_stays_a_gap():
    y = [0.0, 1.0, None, 1.0, 0.0] * 4
    plot = figures.lines([figures.Series("loss", range(20), y)], "Loss", "step", "loss")
    curve = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--after\)', plot).group(1)
    assert curve.count("M") == 5
