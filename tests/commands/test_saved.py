"""What a run used is found again: settings, paths, and the files of the user's own parts, from wherever it is asked."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from worldenv.assemble import check_names
from worldenv.commands import cli, job, options
from worldenv.commands.saved import check_unchanged, document, find_modules, resolved, saved_config, settled
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.suite import TabletopSuite

USED = TrainConfig(
    seed=5,
    start_seed=-7,
    reflector="zero-shot",
    precision="float32",
    rl=PostTrainConfig(iterations=3, siblings=4),
    engine=EngineConfig(horizon=8),
    eval=EvalConfig(episodes=10, imagined=4, quality=2, videos=0),
)
SUITE = "from worldenv.suites.tabletop.suite import TabletopSuite as suite\n"


@pytest.fixture
def make(tmp_path):
    """A run folder as `job` makes it."""

    def made(config=USED, name="run", **changes):
        config = settled(replace(config, **changes))
        return RunFolder.create(tmp_path / name, document(config))

    return made


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes modules of the user's own, and forgets afterwards what was imported."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    before = set(sys.modules)

    def write(folder: str, module: str) -> Path:
        path = tmp_path / folder / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SUITE)
        return path

    def forget():
        for name in [name for name in sys.modules if name not in before and name.startswith("own_")]:
            del sys.modules[name]
        while "" in sys.path:
            sys.path.remove("")

    write.forget = forget
    yield write
    forget()


def test_evaluation_of_a_run_measures_as_the_run_did_unless_told_otherwise(make):
    run = make().path
    used = resolved(EvaluateConfig(models=run))
    for name in ("seed", "start_seed", "suite", "policy", "world", "reflector", "precision", "engine", "eval"):
        assert getattr(used, name) == getattr(USED, name), name
    told = resolved(EvaluateConfig(models=run, start_seed=1, reflector="small", engine=EngineConfig()))
    assert told == replace(used, start_seed=1, reflector="small", engine=EngineConfig())


def test_evaluation_of_models_has_the_defaults_of_training(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # as other libraries keep one beside their weights
    used, default = resolved(EvaluateConfig(models=tmp_path)), TrainConfig()
    assert all(getattr(used, name) == getattr(default, name) for name in ("seed", "suite", "engine", "eval", "device"))


def test_folder_that_is_no_training_run_is_refused_as_such(make, tmp_path):
    run = RunFolder.create(tmp_path / "evaluation", document(resolved(EvaluateConfig())) | {"command": "worldenv-eval"})
    with pytest.raises(UserError, match="evaluation is no training run of this version"):
        resolved(EvaluateConfig(models=run.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "--seed is 6, was 5; leave them out"),
        ({"models": Path("/elsewhere")}, "--models is '/elsewhere', was None"),
        ({"rl": PostTrainConfig(iterations=2, siblings=4)}, "--rl.iterations is 2, was 3"),
        ({"rl": PostTrainConfig(iterations=9, siblings=5)}, "settings: --rl.siblings is 5, was 4;"),
        (
            {"suite": "other", "engine": EngineConfig()},
            "--suite is 'other', was 'tabletop'; --engine.horizon is None, was",
        ),
    ],
)
def test_run_is_not_continued_with_other_settings(make, change, message):
    folder = make()
    with pytest.raises(UserError, match=message):
        check_unchanged(folder, settled(replace(USED, **change)))


def test_run_is_continued_with_its_own_settings_and_more_iterations(make, monkeypatch):
    folder = make()
    check_unchanged(folder, replace(USED, run=folder.path, resume=True))
    check_unchanged(folder, replace(USED, rl=PostTrainConfig(iterations=4, siblings=4, offload="on")))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_unchanged(folder, replace(USED, device="cuda"))


def test_damaged_settings_are_not_taken(make):
    folder = make()
    text = (folder.path / "config.json").read_text()
    (folder.path / "config.json").write_text(text.replace('"siblings": 4', '"siblings": 4.5'))
    with pytest.raises(UserError, match=r"config.json, rl: siblings is 4.5; it should be"):
        saved_config(RunFolder(folder.path))


def test_run_of_a_version_that_had_fewer_settings_is_continued(make):
    folder = make()
    folder.close()
    rl = {name: value for name, value in folder.config["rl"].items() if name != "head_learning_rate"}
    (folder.path / "config.json").write_text(json.dumps(folder.config | {"rl": rl}))
    used = options.training(["--resume", "--run", str(folder.path), "--rl.iterations", "9"])
    assert used.rl == replace(USED.rl, iterations=9)
    with job._open(settled(used), "run") as resumed:
        assert resumed.config["rl"] == rl | {"iterations": 9}
    with pytest.raises(UserError, match="--rl.head-learning-rate is 0.1, was None"):
        check_unchanged(folder, replace(used, rl=replace(used.rl, head_learning_rate=0.1)))


@pytest.mark.parametrize("module", ["own_suite", "own_package.own_suite"])
def test_own_part_is_found_from_another_folder(make, own, tmp_path, monkeypatch, module):
    file = own("a", module)
    monkeypatch.chdir(tmp_path / "a")
    check_names(f"{module}:suite", "small", "composer", "small")
    run = make(suite=f"{module}:suite")
    assert run.config["modules"] == {module: str(file)}
    run.close()
    own.forget()
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    assert resolved(EvaluateConfig(models=run.path)).suite == f"{module}:suite"
    assert sys.modules[module].__file__ == str(file)


def test_other_module_of_that_name_is_never_taken_in_silence(make, own, tmp_path, monkeypatch):
    file, other = own("a", "own_suite"), own("x", "own_suite")
    monkeypatch.chdir(file.parent)
    check_names("own_suite:suite", "small", "composer", "small")
    run = make(suite="own_suite:suite")
    own.forget()
    monkeypatch.chdir(other.parent)
    monkeypatch.syspath_prepend(str(other.parent))
    with pytest.raises(UserError, match=f"used own_suite from {file}, but Python finds {other} here"):
        resolved(EvaluateConfig(models=run.path))
    assert resolved(EvaluateConfig(models=run.path, suite="own_suite:suite")).suite == "own_suite:suite"  # as told


def test_own_part_that_is_gone_is_named(make, own, monkeypatch):
    file = own("a", "own_suite")
    monkeypatch.chdir(file.parent)
    check_names("own_suite:suite", "small", "composer", "small")
    run = make(suite="own_suite:suite")
    file.unlink()
    with pytest.raises(UserError, match=f"used own_suite from {file}, which is gone; put it back"):
        find_modules(run, ["own_suite:suite"])


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mine"
    path.mkdir()
    tiny.save(path)
    return path


WORDS = ["--eval.episodes", "10", "--eval.imagined", "4", "--eval.quality", "2", "--eval.videos", "0"]
WORDS += ["--engine.horizon", "8"]
PRACTICE = ["--rl.starts", "2", "--rl.siblings", "2", "--rl.signal", "1e-9", "--start-seed", "3"]


def test_iterations_are_added_to_a_run_from_another_folder(capsys, models, tmp_path, monkeypatch):
    monkeypatch.setattr("worldenv.evaluation.measure.PRACTICE_STARTS", 30)
    monkeypatch.chdir(models.parent)
    run = tmp_path / "run"
    cli.train(["tabletop", "--models", "mine", "--run", str(run), "--rl.iterations", "1", *WORDS, *PRACTICE])
    first = json.loads(capsys.readouterr().out)
    (tmp_path / "x" / "mine").mkdir(parents=True)  # other models under the same name
    monkeypatch.chdir(tmp_path / "x")
    titles, measured = [], job.measure
    monkeypatch.setattr(job, "measure", lambda *given: (titles.append(given[7]), measured(*given))[1])
    cli.train(["--resume", "--run", "../run", "--rl.iterations", "2"])
    second = json.loads(capsys.readouterr().out)
    assert titles == ["after"]  # what was measured before practice is kept
    assert second["success_before"] == first["success_before"] and second["counts"]["groups"] == 4
    assert second["wall_s"] > first["wall_s"] and second["run"] == first["run"] == str(run)
    folder = RunFolder(run)
    assert folder.config["rl"]["iterations"] == 2 and len(folder.metrics("post_train")) == 2
    assert json.loads((run / "result-1.json").read_text()) == first and folder.result() == second
    cli.evaluate(["--models", "../run"])
    assert json.loads(capsys.readouterr().out)["success"] == second["success_after"]

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "post_train", interrupt)
    with pytest.raises(SystemExit):
        cli.train(["--resume", "--run", "../run", "--rl.iterations", "3"])
    capsys.readouterr()
    with pytest.raises(SystemExit):  # the policy of 2 iterations is not taken for that of 3
        cli.evaluate(["--models", "../run"])
    assert f"the run {run} has not ended; continue it with: worldenv-train --resume" in capsys.readouterr().err


def test_damaged_figures_of_before_are_named(capsys, models, tmp_path, monkeypatch):
    monkeypatch.setattr("worldenv.evaluation.measure.PRACTICE_STARTS", 30)
    run = tmp_path / "run"
    cli.train(["tabletop", "--models", str(models), "--run", str(run), "--rl.iterations", "1", *WORDS, *PRACTICE])
    kept = run / "before.json"
    kept.write_text(kept.read_text().replace("0.0", "0.5", 1))
    with pytest.raises(SystemExit):
        cli.train(["--resume", "--run", str(run), "--rl.iterations", "2"])
    assert "before.json: damaged: its content does not have its checksum" in capsys.readouterr().err


def test_run_stays_in_its_folder_where_a_simulator_changes_the_working_directory(models, tmp_path, monkeypatch):
    monkeypatch.setattr("worldenv.evaluation.measure.PRACTICE_STARTS", 30)
    reset = TabletopSuite.reset

    def go_away(*given):
        monkeypatch.chdir(tmp_path / "x")
        return reset(*given)

    for name in ("x/run", "here"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(TabletopSuite, "reset", go_away)
    monkeypatch.chdir(tmp_path / "here")
    cli.train(["tabletop", "--models", str(models), "--run", "run", "--rl.iterations", "1", *WORDS, *PRACTICE])
    assert RunFolder(tmp_path / "here" / "run").result() is not None and not list((tmp_path / "x" / "run").iterdir())


def test_iterations_that_another_process_added_in_between_are_not_lost(make, monkeypatch):
    folder = make()
    folder.close()
    resume = RunFolder.resume.__func__

    def resumed_after_another(cls, path):
        with resume(cls, path) as before:
            before.rewrite_config(document(replace(USED, rl=PostTrainConfig(iterations=9, siblings=4))))
        return resume(cls, path)

    monkeypatch.setattr(RunFolder, "resume", classmethod(resumed_after_another))
    with pytest.raises(UserError, match="--rl.iterations is 3, was 9"):
        job._open(settled(replace(USED, run=folder.path, resume=True)), "run")
    resume(RunFolder, folder.path).close()  # it is not held


def test_policy_that_was_deleted_is_written_again_by_a_resume(capsys, models, tmp_path, monkeypatch):
    monkeypatch.setattr("worldenv.evaluation.measure.PRACTICE_STARTS", 30)
    run = tmp_path / "run"
    words = ["tabletop", "--models", str(models), "--run", str(run), "--rl.iterations", "1", *WORDS, *PRACTICE]
    cli.train(words)
    policy = run / "checkpoints" / "policy.safetensors"
    weights, first = load_file(policy), json.loads(capsys.readouterr().out)
    policy.unlink()
    cli.train(["--resume", "--run", str(run)])
    again = json.loads(capsys.readouterr().out)
    assert again["success_after"] == first["success_after"] and again["counts"] == first["counts"]
    assert all(weights[name].equal(tensor) for name, tensor in load_file(policy).items())


def test_run_that_makes_its_models_keeps_its_folder_open_to_the_end(capsys, models, tmp_path, monkeypatch):
    made = []

    def make(config, folder, ranks):
        made.append(folder)
        folder.log("base", 4, loss=1.0)
        return models

    monkeypatch.setattr("worldenv.evaluation.measure.PRACTICE_STARTS", 30)
    monkeypatch.setattr(job, "_made_from_scratch", make)
    words = ["tabletop", "--from-scratch", "--run", str(tmp_path / "run"), "--rl.iterations", "1", *WORDS, *PRACTICE]
    cli.train(words)
    assert json.loads(capsys.readouterr().out) == RunFolder(tmp_path / "run").result()
    RunFolder.resume(made[0].path).close()  # it was closed

    def interrupt(config, folder, ranks):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_made_from_scratch", interrupt)
    words[3] = str(tmp_path / "other")
    with pytest.raises(SystemExit):
        cli.train(words)
    assert capsys.readouterr().err.endswith(f"continue with: worldenv-train --resume --run {tmp_path / 'other'}\n")
