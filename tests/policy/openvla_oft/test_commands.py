"""A released policy is named by its folder, on the command line as in Python."""

import json
import shutil

import pytest
import torch

import worldenv
from worldenv.commands import options
from worldenv.commands.saved import settled
from worldenv.errors import UserError
from worldenv.evaluation import measure


@pytest.fixture(scope="module")
def folders(tiny, written, tmp_path_factory):
    """Tiny models of the tabletop, and beside them a released policy that looks at one view."""
    path = tmp_path_factory.mktemp("folders")
    (path / "models").mkdir()
    tiny.save(path / "models")
    shutil.copytree(written["l1"].path, path / "released")
    (path / "released" / "worldenv.json").write_text(json.dumps({"views": ["agentview"], "lora": 4}))
    return path


def config(folders, **changed):
    given = {
        "policy": f"openvla-oft:{folders / 'released'}",
        "models": folders / "models",
        "run": folders / "run",
        "rl": worldenv.PostTrainConfig(iterations=1, starts=2, siblings=2, signal=0.0, learning_rate=1e-2),
        "engine": worldenv.EngineConfig(horizon=8),
        "eval": worldenv.EvalConfig(episodes=10, imagined=2, quality=1, videos=0),
    }
    return worldenv.TrainConfig(**given | changed)


@pytest.fixture(scope="module")
def trained(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "PRACTICE_STARTS", 10)
        yield worldenv.train(config(folders)), folders


def test_a_run_practises_and_leaves_the_policy_as_its_authors_would(trained):
    result, folders = trained
    assert result["counts"]["skipped_steps"] == 0
    parts = worldenv.load_run(folders / "run")
    before = worldenv.load(folders / "models", policy=f"openvla-oft:{folders / 'released'}").policy
    after = worldenv.load(folders / "models", policy=f"openvla-oft:{folders / 'run' / 'policy'}").policy
    starts = worldenv.practice_starts(parts.suite, 0).pick(torch.arange(3))
    key = worldenv.Key(0, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    acted = [
        policy.act(starts.seen, policy.read(starts.texts), key, False).action
        for policy in (parts.policy, after, before)
    ]
    torch.testing.assert_close(acted[1], acted[0], atol=1e-4, rtol=0)
    assert (acted[2] - acted[0]).abs().max() > 1e-3


def test_the_run_goes_on_and_is_evaluated_from_anywhere(trained, tmp_path, monkeypatch):
    result, folders = trained
    kept = json.loads((folders / "run" / "config.json").read_text())
    assert kept["policy"] == f"openvla-oft:{folders / 'released'}" and kept["modules"] == {}
    monkeypatch.chdir(tmp_path)
    more = options.training(["--resume", "--run", str(folders / "run"), "--rl.iterations", "2"])
    assert worldenv.train(more)["counts"]["groups"] == 4
    again = worldenv.evaluate(worldenv.EvaluateConfig(models=folders / "run", run=tmp_path / "eval"))
    assert again["success"]["n"] == 10


def test_a_folder_is_named_from_where_one_is(folders, monkeypatch):
    monkeypatch.chdir(folders)
    given = options.training(["tabletop", "--policy", "openvla-oft:released"])
    assert settled(given).policy == f"openvla-oft:{folders / 'released'}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvla-oft", "unknown policy 'openvla-oft' — did you mean \"openvla-oft:FOLDER\""),
        ("openvla-oft:", "unknown policy 'openvla-oft:'"),
        ("openvla-oft:/nowhere/at/all", "/nowhere/at/all is not there; give the folder of a released model"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(folders, name, message):
    with pytest.raises(UserError, match=message):
        worldenv.load(folders / "models", policy=name)


def test_a_world_is_no_released_policy(folders):
    with pytest.raises(UserError, match="unknown world 'openvla-oft:x'"):
        worldenv.load(folders / "models", world="openvla-oft:x")


def test_a_wrong_folder_leaves_no_run_behind(folders, tmp_path):
    with pytest.raises(UserError, match="is not there; give the folder"):
        worldenv.train(config(folders, policy="openvla-oft:nowhere", run=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
