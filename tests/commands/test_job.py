"""The jobs' parts: videos, which parts an evaluation takes, and what is saved of a run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldenv.assemble import load, make_engine
from worldenv.commands import job
from worldenv.commands.saved import document, resolved, settled
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import measure
from worldenv.evaluation.videos import _wide, file_name, write_videos
from worldenv.records.checkpoint import load_weights
from worldenv.records.model_files import save_model, shipped
from worldenv.records.run_folder import RunFolder
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.suites.tabletop.suite import TabletopSuite
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import CausalWorld
from worldenv.worlds.composer.world import ComposerWorld

SMALL = EvalConfig(episodes=10, imagined=1, quality=2, videos=2)
FILES = ("policy", "composer", "reflector")


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    tiny.save(path)
    causal = CausalNetwork(CausalConfig(width=32, layers=1, heads=2, key_heads=1, channels=4))
    save_model(path / "causal.safetensors", causal, "causal", {}, levels=(1.0,))
    return path


@pytest.fixture
def run_of(folder, tiny, tmp_path):
    """A run folder that has practised: with models of its own (as from scratch does), or with those of `folder`."""

    def make(own: bool, **config) -> RunFolder:
        saved = document(TrainConfig(models=None if own else folder, **config))
        run = RunFolder.create(tmp_path / "run", saved)
        if own:
            (run.path / "models").mkdir()
            for name in FILES:
                (run.path / "models" / f"{name}.safetensors").symlink_to(folder / f"{name}.safetensors")
        save_model(run.checkpoints / "policy.safetensors", tiny.policy(seed=9), "policy", {})
        return run

    return make


def parts_of(**config):
    """What an evaluation with these settings would measure."""
    return job._parts_of(resolved(EvaluateConfig(**config)))


def halved(policy):
    return {name: weight.half().float() for name, weight in policy.state_dict().items()}


def test_more_videos_than_imagined_episodes_are_written_all_the_same(folder, tmp_path):
    parts = load(folder)
    engine, run = make_engine(parts, EngineConfig(horizon=8)), RunFolder.create(tmp_path / "run", {})
    measured = measure(parts.suite, parts.policy, parts.reflector, engine, SMALL, 0, 0, "small")
    write_videos(run, engine, measured, SMALL, 0, "before")
    names = sorted(path.name for path in run.videos.glob("*.webp"))
    assert names == [f"before-{i}-{TASKS[i].name}.webp" for i in range(2)]
    assert len(measured.trajectories) == 10 and len(measured.imagined.stopped) == 1
    assert measured.document()["n"] == 10


def test_names_of_tasks_and_suites_are_safe_as_names_of_files(folder, tmp_path, monkeypatch):
    names = ["a/b", "../x", "\u00fc \n\0", "", ".", "plain-name_1.5", "x" * 300]
    assert [file_name(name) for name in names] == ["a_b", "x", "unnamed", "unnamed", "unnamed", names[5], "x" * 60]
    parts, run = load(folder), RunFolder.create(tmp_path / "run", {})
    engine = make_engine(parts, EngineConfig(horizon=8))
    measured = measure(parts.suite, parts.policy, parts.reflector, engine, SMALL, 0, 0, "small")
    measured.trajectories[0] = replace(measured.trajectories[0], task="../../caf\u00e9/x")
    write_videos(run, engine, measured, SMALL, 0, "before")
    assert (run.videos / "before-0-caf_x.webp").exists()


def test_default_run_folder_is_named_after_the_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = job._create(TrainConfig(suite="json:loads"), "my suite/7")
    assert run.path.parent.name == "runs" and run.path.name.startswith("my_suite_7-2")


def test_views_of_a_video_are_shown_next_to_each_other():
    video = np.arange(2 * 3 * 4 * 5 * 3).reshape(2, 3, 4, 5, 3)
    wide = _wide(video)
    assert wide.shape == (2, 4, 15, 3)
    for view in range(3):
        assert np.array_equal(wide[:, :, 5 * view : 5 * view + 5], video[:, view])


@pytest.mark.parametrize("own", [True, False])
def test_evaluation_of_a_run_takes_its_post_trained_policy(folder, tiny, run_of, same_weights, own):
    parts = parts_of(models=run_of(own).path)
    assert same_weights(parts.policy, halved(tiny.policy(seed=9)))
    assert same_weights(parts.reflector, halved(tiny.reflector())) and isinstance(parts.world, ComposerWorld)
    plain = parts_of(models=folder)
    assert same_weights(plain.policy, halved(tiny.policy()))
    assert parts_of(models=folder, reflector="zero-shot").reflector.zero_shot


def test_evaluation_of_a_run_takes_the_parts_that_the_run_used_unless_others_are_named(run_of):
    run = run_of(False, world="causal", reflector="zero-shot").path
    used = parts_of(models=run)
    assert isinstance(used.world, CausalWorld) and used.reflector.zero_shot
    other = parts_of(models=run, world="composer")
    assert isinstance(other.world, ComposerWorld) and other.reflector.zero_shot
    assert not parts_of(models=run, reflector="small").reflector.zero_shot


def test_evaluation_of_a_run_on_the_shipped_weights_finds_them(tmp_path, same_weights):
    run = RunFolder.create(tmp_path / "run", document(TrainConfig()))
    policy = load().policy
    policy.action_head[-1].bias.data += 1
    job._save_policy(run, policy, TrainConfig(seed=5), "command")
    parts = parts_of(models=run.path)
    assert same_weights(parts.policy, policy) and same_weights(parts.world.network, load(shipped()).world.network)
    _, about = load_weights(run.checkpoints / "policy.safetensors")
    assert about["kind"] == "policy" and about["made"] == {"command": "command", "seed": 5}


def test_run_without_a_policy_yet_is_named(folder, run_of):
    run = run_of(True)
    (run.checkpoints / "policy.safetensors").unlink()
    with pytest.raises(UserError, match="has not ended; continue it with: worldenv-train --resume --run"):
        parts_of(models=run.path)


def test_saved_configuration_leaves_out_where_the_run_lies(tmp_path):
    saved = document(TrainConfig(run=tmp_path, resume=True, seed=3, world="causal"))
    assert saved["seed"] == 3 and saved["world"] == "causal" and not {"run", "resume"} & saved.keys()
    assert saved == json.loads(json.dumps(saved))


def test_result_says_what_the_suite_says_of_itself(folder, tmp_path, monkeypatch):
    given = EvaluateConfig(models=folder, eval=SMALL, engine=EngineConfig(horizon=8))
    assert "suite" not in job.evaluate(replace(given, run=tmp_path / "plain"))
    monkeypatch.setattr(TabletopSuite, "about", lambda suite: {"physics": "of its own"}, raising=False)
    assert job.evaluate(replace(given, run=tmp_path / "told"))["suite"] == {"physics": "of its own"}
    assert RunFolder(tmp_path / "told").result()["suite"] == {"physics": "of its own"}


def test_result_that_is_not_finite_still_ends_in_valid_json(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", {})
    monkeypatch.setattr(job, "_print_table", lambda result: None)
    monkeypatch.setattr("worldenv.records.report.write_report", lambda folder: folder.path / "report.html")
    result = job._finish(run, {"wall_s": 1.0, "world_model": {"psnr": [float("inf"), 20.0]}})
    assert json.loads(json.dumps(result, allow_nan=False)) == {"wall_s": 1.0, "world_model": {"psnr": [None, 20.0]}}


def test_time_to_make_the_models_is_not_called_evaluation(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    for iteration in range(2):
        run.log("post_train", iteration, rollout_s=3.0, update_s=1.0)
    assert job._shares(run, models=80.0, evaluate=12.0) == {
        "rollout": 0.06,
        "update": 0.02,
        "evaluate": 0.12,
        "models": 0.8,
    }


def test_seconds_that_were_changed_in_the_metrics_end_no_run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    for iteration, wrong in enumerate((3.0, None, "long", -1e300)):
        run.log("post_train", iteration, rollout_s=wrong)
    assert job._shares(run, models=0.0, evaluate=1.0) == {
        "rollout": 0.75,
        "update": 0.0,
        "evaluate": 0.25,
        "models": 0.0,
    }


def test_damaged_result_of_the_shorter_run_is_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    (run.path / "result-4.json").write_text('{"wall_s": "long"}')
    with pytest.raises(UserError, match="result-4.json: wall_s is 'long' and should be a number"):
        job._earlier_s(run)


@pytest.mark.parametrize("act", [job.train, job.evaluate])
def test_configuration_of_another_kind_is_refused(act):
    for wrong in (None, {}, EvaluateConfig() if act is job.train else TrainConfig()):
        with pytest.raises(UserError, match=f"config is a {type(wrong).__name__}; it should be of type "):
            act(wrong)


def test_wrong_names_are_found_before_any_model_is_trained(tmp_path):
    config = TrainConfig(from_scratch=True, reflector="foo", run=tmp_path / "run")
    with pytest.raises(UserError, match="unknown reflector 'foo'"):
        job.train(config)
    assert not (tmp_path / "run").exists()


def test_composer_is_not_trained_for_hours_to_be_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match="the composer has no GPU kernels: train it with --device cpu"):
        TrainConfig(from_scratch=True, device="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"eval": EvalConfig(episodes=100_000)},
            r"frames of 100,000 true episodes take 100.\d\d GB .* lower --eval.epi",
        ),
        ({"rl": PostTrainConfig(starts=10_000, siblings=100)}, "records of 1,000,000 episodes of"),
        ({"engine": EngineConfig(horizon=1_000_000), "eval": EvalConfig(imagined=500)}, "records of 500 episodes"),
    ],
)
def test_memory_is_said_before_any_work(folder, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("worldenv.commands.job.free_bytes", lambda device: 4 << 30)
    monkeypatch.setattr("worldenv.rollout.engine.free_bytes", lambda device: 1 << 30)
    config = TrainConfig(models=folder, run=tmp_path / "run", **{"rl": PostTrainConfig(starts=2, siblings=2)} | change)
    with pytest.raises(UserError, match=message):
        job.train(config)
    assert not (tmp_path / "run").exists()


def test_policy_that_cannot_be_trained_or_saved_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    def refuse(policy):
        raise UserError("cannot be saved")

    config = TrainConfig(models=folder, run=tmp_path / "run")
    monkeypatch.setattr("worldenv.commands.job.check_saveable", refuse)
    with pytest.raises(UserError, match="cannot be saved"):
        job.train(config)
    monkeypatch.setattr("worldenv.policy.small.SmallPolicy.trainable", lambda self: [])
    with pytest.raises(UserError, match="no trainable parameters"):
        job.train(config)
    assert not (tmp_path / "run").exists()


def test_run_of_another_version_is_not_evaluated_with_other_parts(tmp_path):
    run = RunFolder.create(tmp_path / "old", {"zero_shot_judge": True})
    with pytest.raises(UserError, match="is no training run of this version: its config.json has no settings of rl"):
        job.load_run(run.path)


def test_saved_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("worldenv.evaluation.config.present", lambda folder: {})
    saved = document(settled(TrainConfig(models=Path("here"), eval=EvalConfig(weights=Path("~/there")))))
    assert saved["models"] == str(tmp_path / "here") and saved["eval"]["weights"] == str(tmp_path / "home" / "there")
