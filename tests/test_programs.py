"""Of what a stranger's run names, nothing is executed that lies in the run, is another user's, or Python's own."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from worldenv.commands import cli, job
from worldenv.commands.saved import document, resolved
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.records.run_folder import RunFolder


@pytest.fixture
def stranger(tmp_path, monkeypatch, capsys):
    """A run that names a program, and the way that a user who tries it is told why not."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    with RunFolder.create(tmp_path / "run", document(TrainConfig())):
        pass

    def tried(**config) -> str:
        with RunFolder.resume(tmp_path / "run") as folder:
            folder.rewrite_config(folder.config | config)
        said = set()
        for _ in range(2):  # what was refused once is not taken the next time
            for use in (lambda: resolved(EvaluateConfig(models=folder.path)), lambda: job.load_run(folder.path)):
                (folder.checkpoints / "policy.safetensors").touch()
                with pytest.raises(UserError) as refused:
                    use()
                said.add(" ".join(str(refused.value).split()))
            with pytest.raises(SystemExit):
                cli.train(["--resume", "--run", str(folder.path)])
            said.add(capsys.readouterr().err.removeprefix("worldenv-train: ").strip())
        assert not (tmp_path / "executed").exists()
        assert len(said) == 1
        return said.pop()

    return tried


@pytest.fixture
def program(tmp_path):
    """Writes a module that leaves a file when it is executed."""

    def written(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
        return path

    return written


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "link", "linked"])
def test_module_within_the_run_is_not_executed(stranger, program, tmp_path, monkeypatch, place):
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "linked").symlink_to("run/videos")
    file = program(tmp_path / place / "evil_part.py")
    monkeypatch.chdir(tmp_path / "run")
    said = stranger(suite="evil_part:suite", modules={"evil_part": str(file)})
    assert f"evil_part.py is a program within the run {tmp_path / 'run'}, which names it; if you trust it" in said


def test_package_within_the_run_is_not_executed_for_a_module_outside(stranger, program, tmp_path, monkeypatch):
    program(tmp_path / "run" / "evil_package" / "__init__.py")
    outside = program(tmp_path / "mine" / "evil_package" / "part.py")
    monkeypatch.syspath_prepend(str(tmp_path / "run"))  # as `python -m` does in the working directory
    said = stranger(policy="evil_package.part:policy", modules={"evil_package.part": str(outside)})
    assert "evil_package/__init__.py is a program within the run" in said


def test_module_that_the_run_has_no_file_of_is_not_looked_for(stranger, program, tmp_path, monkeypatch):
    program(tmp_path / "run" / "evil_part.py")
    monkeypatch.chdir(tmp_path / "run")
    said = stranger(world="evil_part:world", modules={})
    assert "does not say from which file it took evil_part: name the part" in said


def test_module_of_another_user_is_executed_only_from_pythonpath(stranger, program, tmp_path, monkeypatch):
    file = program(tmp_path / "theirs" / "evil_part.py")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(Path, "stat", _owned(file, 5678))
    said = stranger(suite="evil_part:suite", modules={"evil_part": str(file)})
    assert f"{file} is a program of another user (id 5678), and the run {tmp_path / 'run'} names it" in said
    monkeypatch.syspath_prepend(str(file.parent))
    resolved(EvaluateConfig(models=tmp_path / "run"))
    assert (tmp_path / "executed").exists()
    del sys.modules["evil_part"]


def _owned(file: Path, owner: int):
    stat = Path.stat

    def found(path: Path, **options):
        status = stat(path, **options)
        return os.stat_result([*status[:4], owner, *status[5:]]) if path == file else status

    return found


@pytest.mark.parametrize("kept", [True, False])
def test_function_of_python_itself_is_no_part(stranger, kept):
    import shutil

    modules = {"shutil": shutil.__file__} if kept else {}
    said = stranger(policy="shutil:rmtree", modules=modules)  # it would be called with the folder of the models
    assert "names shutil, a module of Python itself, which has no parts" in said


@pytest.mark.parametrize("module", ["", ".evil_part", "evil_part.", "a.b.c.d.e.f.g.h", "os", "evil_part"])
def test_impossible_module_is_refused(stranger, program, tmp_path, module):
    file = program(tmp_path / "mine" / "other.py")
    assert str(tmp_path / "run") in stranger(suite=f"{module}:suite", modules={module: str(file)})
    assert str(tmp_path / "mine") not in sys.path and "/" not in sys.path


def test_torchscript_within_the_run_is_loaded_only_where_the_user_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("worldenv.evaluation.perceptual.find_spec", lambda name: True)
    weights = tmp_path / "run" / "weights"
    with RunFolder.create(tmp_path / "run", document(TrainConfig())) as folder:
        weights.mkdir()
        with ZipFile(weights / "vgg16.pt", "w"):
            pass
        config = replace(TrainConfig(), eval=EvalConfig(weights=weights))
        folder.rewrite_config(document(config))
    message = f"{weights / 'vgg16.pt'} is a program within the run {tmp_path / 'run'}"
    with pytest.raises(UserError, match=message):
        resolved(EvaluateConfig(models=tmp_path / "run"))
    for command, words in ((cli.evaluate, ["--models"]), (cli.train, ["--resume", "--run"])):
        with pytest.raises(SystemExit):
            command([*words, str(tmp_path / "run")])
        assert message in capsys.readouterr().err
    assert resolved(EvaluateConfig(models=tmp_path / "run"), has_weights=True).eval.weights == weights
