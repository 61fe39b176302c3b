"""Files of benchmarks: written once, compared, drawn; a way that got slower is marked, noise is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import draw
import pytest
from document import document, load, row, write

import worldenv
from worldenv.errors import UserError

ROOT = Path(__file__).parents[2]


def made(**medians):
    rows = [
        row(name, "ops", [s * f for f in (0.98, 1.0, 1.02)], {"speedup_over": {"eager": 1 / s}})
        for name, s in medians.items()
    ]
    hourly = {"plain": 100.0, "ours": 500.0}
    ways = [row(name, "waterfall", [1.0], {"episodes_per_hour": v, "speedup": v / 100}) for name, v in hourly.items()]
    return document([*rows, *ways])


def test_file_is_read_as_it_was_written_and_never_overwritten(tmp_path):
    path, found = tmp_path / "new" / "a.json", made(one=0.5)
    write(path, found)
    assert load(path) == found
    stats = found["benchmarks"][0]["stats"]
    assert stats["median"] == pytest.approx(0.5) and stats["rounds"] == 3 and stats["q1"] < stats["q3"]
    assert found["machine_info"]["worldenv"]["torch"] and found["datetime"]
    with pytest.raises(UserError, match="is there already"):
        write(path, made(one=0.7))
    assert load(path) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": 3}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match="a.json"):
        load(path)
    with pytest.raises(UserError, match="missing.json"):
        load(tmp_path / "missing.json")


def test_comparison_marks_what_changed_and_only_that():
    rows = compare.compare(made(same=0.5, faster=0.8, gone=0.1), made(same=0.51, faster=0.4, new=0.2))
    by_name = {name: cells for name, *cells in rows}
    assert by_name["same"] == ["500 ms", "510 ms", "0.98x", "", "eager 2.00 -> 1.96"]
    assert by_name["faster"] == ["800 ms", "400 ms", "2.00x", "*", "eager 1.25 -> 2.50"]
    assert by_name["new"][:2] == ["-", "200 ms"] and by_name["gone"][:2] == ["100 ms", "-"]


def test_a_change_within_the_spread_of_the_rounds_is_noise():
    wide, narrow = row("a", "ops", [0.2, 1.0, 1.8], {}), row("a", "ops", [0.7, 0.75, 0.8], {})
    assert not compare.beyond_noise(wide["stats"], narrow["stats"])
    assert compare.beyond_noise(row("a", "ops", [1.0], {})["stats"], narrow["stats"])


def test_picture_shows_every_speedup_and_the_waterfall():
    figure = draw.draw(made(one=0.5, two=0.25))
    waterfall, speedups = figure.axes
    assert [label.get_text() for label in waterfall.get_yticklabels()] == ["plain", "ours"]
    assert [bar.get_width() for bar in waterfall.patches] == [100.0, 500.0]
    assert [label.get_text() for label in speedups.get_yticklabels()] == ["one", "two"]
    assert [bar.get_width() for bar in speedups.patches] == pytest.approx([2.0, 4.0])
    with pytest.raises(UserError, match="none is of a waterfall"):
        draw.draw({"benchmarks": [row("a", "ops", [1.0], {})]})


def test_both_commands_read_files_from_the_command_line(tmp_path):
    for name, found in (("a", made(one=0.5)), ("b", made(one=0.25))):
        write(tmp_path / f"{name}.json", found)
    printed = run("compare.py", tmp_path / "a.json", tmp_path / "b.json")
    assert "2.00x" in printed.stdout and "*" in printed.stdout
    run("draw.py", tmp_path / "a.json", "-o", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "c.json").write_text(json.dumps([]))
    for command in ("compare.py", "draw.py"):
        refused = run(command, *[tmp_path / "c.json"] * (2 if command == "compare.py" else 1), check=False)
        assert refused.returncode == 1 and "has no list of benchmarks" in refused.stderr


def run(command, *arguments, check=True):
    words = [sys.executable, ROOT / "benchmarks" / command, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(worldenv.__file__).parents[1])}
    return subprocess.run(words, capture_output=True, text=True, check=check, env=environment)
