"""A run that is given a base or a fine-tuned policy takes them, and makes the rest."""

import shutil
from dataclasses import replace

import pytest
import torch

from worldenv.errors import UserError
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.checkpoint import CheckpointError, save_weights
from worldenv.records.model_files import save_model, shipped
from worldenv.records.run_folder import RunFolder
from worldenv.training.config import tiny_scratch
from worldenv.training.given import BASE, FINETUNED, POLICY, TAKEN, take
from worldenv.training.lessons import CHUNK, LEAST_SCALE
from worldenv.training.pipeline import Pipeline
from worldenv.training.pretrain import Base

CONFIG = SmallPolicyConfig(width=32, channels=8, blocks=1)


@pytest.fixture
def given(tmp_path):
    folder, base = tmp_path / "given", Base(CONFIG)
    folder.mkdir()
    save_weights(folder / BASE, base.state_dict(), {"kind": "base", "made": {"seed": 3}})
    save_model(folder / FINETUNED, base.policy, "policy", {"seed": 3})
    return folder


def test_both_are_copied_and_stderr_says_so(given, tmp_path, capsys):
    take(given, tmp_path / "models", CONFIG)
    for name in TAKEN:
        assert (tmp_path / "models" / name).read_bytes() == (given / name).read_bytes()
    assert f"taken from {given}: {BASE}, {FINETUNED}; all other models are made" in capsys.readouterr().err


def test_what_the_run_has_already_is_kept_and_the_given_folder_may_be_gone(given, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / BASE).write_bytes(b"own")
    take(given, models, CONFIG)
    assert (models / BASE).read_bytes() == b"own" and (models / FINETUNED).exists()
    (given / POLICY).write_bytes(b"")  # made there meanwhile
    take(given, models, CONFIG)
    shutil.rmtree(given)
    take(given, models, CONFIG)


def test_one_of_them_is_enough_and_none_is_refused(given, tmp_path):
    (given / BASE).unlink()
    take(given, tmp_path / "models", CONFIG)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [FINETUNED]
    (given / FINETUNED).unlink()
    with pytest.raises(UserError, match=f"has neither {BASE} nor {FINETUNED}, .* leave out --models"):
        take(given, tmp_path / "others", CONFIG)


def test_whole_set_is_refused_before_hours_of_training(given, tmp_path):
    (given / POLICY).write_bytes(b"")
    with pytest.raises(UserError, match="is a whole set of models: to practise with it, give --no-from-scratch"):
        take(given, tmp_path / "models", CONFIG)


@pytest.mark.parametrize(("name", "kind"), [(BASE, "reflector"), (FINETUNED, "base")])
def test_other_kind_is_refused(given, tmp_path, name, kind):
    base = Base(CONFIG)
    module = base if name == BASE else base.policy
    save_weights(given / name, module.state_dict(), {"kind": kind, "made": {}})
    with pytest.raises(CheckpointError, match=f"{name} is of the kind '{kind}'; a .* model of worldenv-train"):
        take(given, tmp_path / "models", CONFIG)
    assert not (tmp_path / "models" / name).exists()


def test_other_settings_and_other_sizes_are_refused(given, tmp_path):
    (given / BASE).unlink()
    with pytest.raises(CheckpointError, match=f"{FINETUNED} has other settings than the policy of this run"):
        take(given, tmp_path / "models", replace(CONFIG, view="wrist"))
    with pytest.raises(CheckpointError, match=FINETUNED):
        take(given, tmp_path / "models", replace(CONFIG, width=64))


def test_the_package_has_a_base_and_a_policy_for_libero(tmp_path):
    config = SmallPolicyConfig(view="agentview", chunk=CHUNK, text="sentences", scale_low=LEAST_SCALE)  # of the preset
    take(shipped().parent / "libero", tmp_path / "models", config)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(TAKEN)


def test_run_begins_with_what_it_is_given(tmp_path, monkeypatch):
    torch.manual_seed(0)
    folder, made = tmp_path / "given", []
    folder.mkdir()
    save_model(folder / FINETUNED, SmallPolicy(SmallPolicyConfig()), "policy", {"seed": 3})
    monkeypatch.setattr(Pipeline, "_make", lambda self, path, make: made.append((path.name, path.exists())))
    pipeline = Pipeline(RunFolder.create(tmp_path / "run", {}), tiny_scratch(), 2, "composer", given=folder)
    pipeline.run()
    assert [name for name, there in made if there] == [FINETUNED] and len(made) > 8
    assert f"--models {folder}" in pipeline.command


def test_folder_that_cannot_be_written_is_one_line(given, tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    (folder.path / "models").write_bytes(b"")
    with pytest.raises(UserError, match="models cannot be written"):
        Pipeline(folder, tiny_scratch(), 2, "composer", given=given).run()
