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
        command = f"worldenv-train tabletop --seed {seed} --start-seed {seed} --run {folder} --resume --rl.clip 0.1"
        result = {"success_before": rules, "success_after": rules, "seed": seed, "wall_s": 1.0, "command": command}
        (folder / "result.json").write_text(json.dumps(result | figures))
    return tmp_path


def series(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["learning.py", "--name", "tried", *words])
    learning.main()


def test_results_that_are_there_are_taken_and_put_together(place, monkeypatch, capsys):
    series(monkeypatch, "--seeds", "0", "1", "--", "--rl.clip", "0.1")
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert len(json.loads((place / "results" / "learning-tried.json").read_text())["runs"]) == 2


def test_results_of_other_options_are_refused(place, monkeypatch):
    with pytest.raises(SystemExit, match="--rl.clip 0.1'.*: give another --name"):
        series(monkeypatch, "--seeds", "0", "--", "--rl.clip", "0.2")


def test_file_with_more_seeds_is_kept(place, monkeypatch, capsys):
    series(monkeypatch, "--seeds", "0", "1", "--", "--rl.clip", "0.1")
    with pytest.raises(SystemExit):
        series(monkeypatch, "--seeds", "0", "--", "--rl.clip", "0.1")
    assert "has seeds [1], too" in capsys.readouterr().err


def test_two_series_are_compared_seed_by_seed(place, monkeypatch, capsys):
    (place / "results").mkdir()
    for name, seeds, gain in (("one", [2, 0, 1], [0.3, 0.1, 0.2]), ("other", [0, 1, 3], [0.05, 0.05, 0.9])):
        summary = {"seeds": seeds} | {rule: {"gain": gain} for rule in learning.RULES}
        learning.results(name).write_text(json.dumps({"summary": summary}))
    series(monkeypatch, "--compare", "one", "other")
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [0, 1]
    mean, low, high = found["oracle"]["difference"]  # of 0.05 and 0.15: t(0.975, 1) = 12.7, s / sqrt(2) = 0.05
    assert (mean, low, high) == pytest.approx((0.1, 0.1 - 0.6353, 0.1 + 0.6353), abs=1e-3)
    assert found["own_stop"]["one"][0] == pytest.approx(0.15) and found["no_stop"]["other"][0] == pytest.approx(0.05)
    with pytest.raises(SystemExit):
        series(monkeypatch, "--compare", "one", "absent")
    assert "there is no" in capsys.readouterr().err
