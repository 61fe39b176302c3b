"""The commands as a person types them: one JSON line at the end of stdout, or one line that says what is wrong."""

import json
import math
import warnings

import pytest

from worldenv.commands import cli
from worldenv.records.model_files import save_model
from worldenv.records.run_folder import RunFolder

SMALL = ["--eval.episodes", "10", "--eval.imagined", "4", "--eval.quality", "2", "--eval.videos", "1"]
SMALL += ["--engine.horizon", "8"]
PRACTICE = ["--rl.iterations", "2", "--rl.starts", "2", "--rl.siblings", "2", "--rl.signal", "1e-9"]


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    tiny.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def few_starts(monkeypatch):
    from worldenv.evaluation import measure

    monkeypatch.setattr(measure, "PRACTICE_STARTS", 30)


def refused(capsys, command, words):
    with pytest.raises(SystemExit) as end:
        command(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    return err


def check_success(part, n):
    assert {"oracle", "own_stop", "no_stop", "n", "per_task"} <= part.keys() and part["n"] == n
    assert all(0 <= part[rule] <= 1 for rule in ("oracle", "own_stop", "no_stop")) and len(part["per_task"]) == 10


def test_training_ends_in_one_json_line_and_its_run_can_be_evaluated(capsys, models, tmp_path):
    run = tmp_path / "run"
    words = ["tabletop", "--models", models, "--run", str(run), "--seed", "3", "--start-seed", "-5", *SMALL, *PRACTICE]
    cli.train(words)
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1 and "report.html" in err
    for name in ("success_before", "success_after"):
        check_success(result[name], 10)
    for name in ("imagined_success", "false_stop", "missed_stop"):
        assert all(0 <= result[name][when] <= 1 for when in ("before", "after"))
    assert result["seed"] == 3 and result["start_seed"] == -5 and result["run"] == str(run) and result["wall_s"] > 0
    assert math.isclose(sum(result["time_shares"].values()), 1)
    folder = RunFolder(run)
    assert folder.result() == result and len(folder.metrics("post_train")) == 2
    assert (run / "report.html").exists() and len([*(run / "videos").glob("*.webp")]) == 2
    assert folder.config["seed"] == 3 and folder.config["rl"]["siblings"] == 2

    err = refused(capsys, cli.train, words)
    assert err.count("\n") == 1 and f"run folder {run} is not empty: choose another --run" in err
    assert folder.result() == result

    _check_resume(capsys, words, result, run)
    cli.evaluate(["--models", str(run), "--run", str(tmp_path / "eval")])  # all settings are those of the run
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["success"] == result["success_after"]  # the models that it practised with, not the shipped ones


def _check_resume(capsys, words, result, run):
    err = refused(capsys, cli.train, [*words, "--resume", "--rl.clip", "0.15"])
    assert "cannot be continued with other settings: --rl.clip is 0.15, was 0.2; leave them out" in err
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    cli.train(["--resume", "--run", str(run)])
    out, err = capsys.readouterr()
    assert json.loads(out) == result and err.count("\n") == 1 and "has ended after 2 iterations" in err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files  # nothing is touched
    (run / "result.json").unlink()
    cli.train([*words, "--resume"])
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in ("success_before", "imagined_success", "counts"):
        assert again[name] == result[name], name
    assert len(RunFolder(run).metrics("post_train")) == 2


def test_evaluation_ends_in_one_json_line(capsys, models, tmp_path):
    cli.evaluate(["--models", models, "--run", str(tmp_path / "eval"), "--seed", "2", "--start-seed", "7", *SMALL])
    out, _ = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert len(out.splitlines()) == 1
    check_success(result["success"], 10)
    assert {"imagined_success", "false_stop", "missed_stop", "wall_s"} <= result.keys()
    assert result["seed"] == 2 and result["start_seed"] == 7 and result["run"] == str(tmp_path / "eval")
    assert result["imagined_minus_true"] == pytest.approx(result["imagined_success"] - result["success"]["oracle"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabeltop"], "unknown preset 'tabeltop' — did you mean \"tabletop\"?"),
        (["--policy", "small", "tabletop"], "the first word is '--policy'; it should be a preset: tabletop, tabletop-"),
        (["tabletop", "--resume"], "--resume needs --run"),
        (
            ["tabletop", "--from-scratch", "--suite", "metaworld"],
            "the preset tabletop has settings for the suite tabletop, not for making the models of metaworld: take "
            "`worldenv-train metaworld --from-scratch --suite metaworld`",
        ),
        (
            ["metaworld-tiny", "--suite", "libero_spatial-small", "--world", "composer"],
            "take `worldenv-train libero-small --from-scratch --suite libero_spatial-small`",
        ),
        (["tabletop", "--rl.siblings", "1"], "--rl.siblings is 1; it should be a whole number from 2"),
        (["tabletop", "--rl.learning-rate", "nan"], "--rl.learning-rate is nan; it should be a number from 0 to 10"),
        (["tabletop", "--rl.accumulate", "300"], "--rl.accumulate is 300; it should not exceed minibatch, 256"),
        (["tabletop", "--engine.horizon", "0"], "--engine.horizon is 0; it should be"),
        (["tabletop", "--eval.episodes", "1000000000000"], "--eval.episodes is 1000000000000; it should be"),
        (["tabletop", "--scratch.base.steps", "0"], "--scratch.base.steps is 0; it should be"),
        (["tabletop", "--scratch.causal.width", "0"], "--scratch.causal.width is 0; it should be"),
        (["tabletop", "--scratch.causal.image-size", "128"], "--scratch.causal is of image_size 128; the pictures"),
        (["tabletop", "--scratch.causal-levels", "1", "nan"], "--scratch.causal-levels is nan; it should be"),
        (["tabletop", "--scratch.action-episodes", "0"], "--scratch.action-episodes is 0"),
        (["tabletop", "--seed", "-1"], "--seed is -1"),
        (
            ["tabletop", "--rounds", "2", "--world", "causal"],
            "--rounds is 2; between rounds only these parts can be trained again",
        ),
        (["tabletop", "--rounds", "2", "--refresh.episodes", "0"], "--refresh.episodes is 0; it should be"),
        (["tabletop", "--run", ""], "'--run' is empty; give it a value"),
        (["tabletop", "--models="], "'--models' is empty; give it a value"),
        (["tabletop", "--run", "x" * 300], "which is not a valid path: File name too long"),
        (["--resume"], "--resume needs --run"),
        (["--resume", "--run", "nowhere"], "run folder nowhere does not exist"),
        (["tabletop", "--world", "compser"], "unknown world 'compser' — did you mean \"composer\"?; for your own: mod"),
        (["tabletop", "--policy", "nowhere_7:make"], "policy 'nowhere_7:make' cannot be found: No module named 'now"),
        (["tabletop", "--suite", "json:make"], "suite 'json:make' cannot be found: module 'json' has no attribute"),
        (["tabletop", "--models", "nowhere", "--run", "RUN"], "nowhere/policy.safetensors: there is no such file"),
    ],
)
def test_mistake_is_one_line_on_stderr(capsys, tmp_path, words, message):
    err = refused(capsys, cli.train, [str(tmp_path / "run") if word == "RUN" else word for word in words])
    assert err.startswith("worldenv-train: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "-1"], "--seed is -1"),
        (["--models", "nowhere"], "nowhere/policy.safetensors: there is no such file"),
        (["--eval.imagined", "0"], "--eval.imagined is 0; it should be"),
        (["--precision", "int4"], "--precision is 'int4'; it should be auto or float32 or int8"),
        (["--models", "a\0b"], "--models is 'a\\x00b', which is not a valid path"),
        (["--suite", ""], "'--suite' is empty"),
        (["--eval.weights", "no\nfolder"], "no folder has no weights"),
        (["--eval.episodes", "ten"], "--eval.episodes: invalid literal for int() with base 10: 'ten'"),
        (["--device", "gpu"], "device is 'gpu'; it should be cpu or cuda"),
        (["--engine.batch", "9" * 5000], "--engine.batch: no type matching {None}|INT could be"),
        (["--run"], "Missing value for argument '--run'"),
        ([""], "the first word is empty"),
    ],
)
def test_mistake_of_an_evaluation_is_one_line_too(capsys, words, message):
    err = refused(capsys, cli.evaluate, words)
    assert err.startswith("worldenv-eval: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words", "near"),
    [
        (cli.train, ["tabletop", "--rl.sibling", "4"], "--rl.siblings"),
        (cli.train, ["tabletop-quick", "--from-scrach"], "--from-scratch"),
        (cli.evaluate, ["--start-sed", "4"], "--start-seed"),
    ],
)
def test_unknown_option_names_the_nearest(capsys, command, words, near):
    assert near in refused(capsys, command, words)


def test_policy_may_act_in_chunks_of_its_own_length(capsys, models, tiny, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("composer", "reflector"):
        (folder / f"{name}.safetensors").symlink_to(f"{models}/{name}.safetensors")
    save_model(folder / "policy.safetensors", tiny.policy(chunk=2), "policy", {})
    cli.evaluate(["--models", str(folder), "--run", str(tmp_path / "run"), *SMALL])
    check_success(json.loads(capsys.readouterr().out.splitlines()[-1])["success"], 10)


def test_starts_and_models_that_do_not_fit_together_are_refused(capsys, models, tiny, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("policy", "reflector"):
        (folder / f"{name}.safetensors").symlink_to(f"{models}/{name}.safetensors")
    save_model(folder / "composer.safetensors", tiny.simulator(size=32), "composer", {}, levels=(1.0,))
    err = refused(capsys, cli.evaluate, ["--models", str(folder), "--run", str(tmp_path / "run"), *SMALL])
    said = "worldenv-eval: frames of the starts is torch.uint8 [1, 1, 64, 64, 3]; the world model takes "
    assert err.startswith(said) and err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_interruption_says_how_to_go_on(capsys, models, tmp_path, monkeypatch):
    from worldenv.commands import job

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "measure", interrupt)
    with pytest.raises(SystemExit) as end:
        cli.train(["tabletop", "--models", models, "--run", str(tmp_path / "run"), *SMALL])
    out, err = capsys.readouterr()
    advice = f"worldenv-train: interrupted; continue with: worldenv-train --resume --run {tmp_path / 'run'}\n"
    assert end.value.code == 130 and out == "" and err.endswith(advice)


def test_warning_that_the_caller_made_an_error_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("worldenv.commands.job.train", lambda *given: warnings.warn("nothing was learnt", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PYTHONWARNINGS=error
        assert refused(capsys, cli.train, ["tabletop"]) == "worldenv-train: nothing was learnt\n"


def test_file_of_a_stranger_sends_the_terminal_no_commands(capsys, models, tiny, tmp_path):
    save_model(tmp_path / "policy.safetensors", tiny.policy(), "\x1b]0;mine\x07\x9b2J", {})
    err = refused(capsys, cli.evaluate, ["--models", str(tmp_path)])
    assert err.strip().isprintable() and r"holds a \x1b]0;mine\x07\x9b2J; a policy was expected" in err


@pytest.mark.parametrize("command", [cli.train, cli.evaluate, cli.info])
def test_working_directory_that_is_gone_is_named(capsys, tmp_path, monkeypatch, command):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the working directory was deleted, or you may not read it; change to another folder" in refused(
        capsys, command, []
    )


def test_options_of_the_stages_are_shown_to_who_makes_the_models_and_to_nobody_else(capsys):
    said = []
    for words in ([], ["--from-scratch"], ["--rounds", "2"]):
        with pytest.raises(SystemExit):
            cli.train(["tabletop", *words, "--help"])
        said.append(capsys.readouterr().out)
    assert not any(name in said[0] for name in ("--scratch.", "--refresh.")) and "--rounds" in said[0]
    assert all("--scratch.base.steps" in part and "--refresh.episodes" in part for part in said[1:])
    assert all(name in part for part in said for name in ("--rl.siblings", "--engine.horizon", "--world"))


@pytest.mark.parametrize("command", [cli.train, cli.evaluate])
def test_help_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    out, _ = capsys.readouterr()
    assert end.value.code == 0
    assert ("tabletop-quick" in out) if command is cli.train else ("--start-seed" in out)
