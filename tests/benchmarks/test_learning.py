"""The series over several seeds: what is there is taken only if it is what was asked for, and never dropped."""

import json
import sys

import learning
import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learning, "__file__", str(tmp_path / "learning.py"))
    rules = {rule: 0.5 for rule in learning.RULES} | {"n": 10}
    figures = {name: {"before": 0.0, "after": 0.0} for name in ("imagined_minus_true", "false_stop", "missed_stop")}
    for seed in (0, 1):
        folder = tmp_path / "runs" / "learning-tried" / f"seed-{seed}"
        folder.mkdir(parents=True)
        command = f"worldenv-train tabletop --seed {seed} --start-seed {seed} --run {folder} --resume --post.clip 0.1"
        result = {"success_before": rules, "success_after": rules, "seed": seed, "wall_s": 1.0, "command": command}
        (folder / "result.json").write_text(json.dumps(result | figures))
    return tmp_path


def series(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["learning.py", "--name", "tried", *words])
    learning.main()


def test_results_that_are_there_are_taken_and_put_together(place, monkeypatch, capsys):
    series(monkeypatch, "--seeds", "0", "1", "--", "--post.clip", "0.1")
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert len(json.loads((place / "results" / "learning-tried.json").read_text())["runs"]) == 2


def test_results_of_other_options_are_refused(place, monkeypatch):
    with pytest.raises(SystemExit, match="--post.clip 0.1'.*: give another --name"):
        series(monkeypatch, "--seeds", "0", "--", "--post.clip", "0.2")


def test_file_with_more_seeds_is_kept(place, monkeypatch, capsys):
    series(monkeypatch, "--seeds", "0", "1", "--", "--post.clip", "0.1")
    with pytest.raises(SystemExit):
        series(monkeypatch, "--seeds", "0", "--", "--post.clip", "0.1")
    assert "has seeds [1], too" in capsys.readouterr().err
