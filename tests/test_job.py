"""The jobs' parts: start states that never meet, videos, and which models an evaluation takes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldenv import job
from worldenv.config import EvaluateConfig, TrainConfig
from worldenv.evaluation.truth import EvalConfig
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.model_files import Models, save_model
from worldenv.records.run_folder import RunFolder
from worldenv.rl.loop import Learner, PostTrainConfig, group_advantage
from worldenv.rollout.engine import EngineConfig
from worldenv.suites.tabletop.physics import start_state
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training.pipeline import EXPLORATION_START

SMALL = EvalConfig(episodes=10, imagined=1, quality=2, videos=2)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    save_model(path / "policy.safetensors", tiny.policy(), {})
    save_model(path / "simulator.safetensors", tiny.simulator(size=64), {}, levels=(1.0,))
    save_model(path / "reflector.safetensors", tiny.reflector(), {})
    return path


def worlds(pairs, split):
    return {start_state(task, start, split)[0].tobytes() for task, start in pairs}


def test_held_out_starts_of_two_start_seeds_are_disjoint_and_spread_over_the_tasks():
    seen = set()
    for start_seed in (-3, 0, 1, 2, 10**12):
        tasks, starts = job.held_out(EvalConfig(), start_seed, 500)
        assert {name: tasks.count(name) for name in TASKS} == dict.fromkeys(TASKS, 50)
        found = worlds(zip(tasks, starts, strict=True), "test")
        assert len(found) == 500 and not found & seen
        seen |= found


def test_held_out_starts_never_equal_a_start_that_was_trained_on(monkeypatch):
    picked = []
    monkeypatch.setattr(job, "starts_of", lambda tasks, starts, split: picked.append((tasks, starts, split)))
    for seed in (0, 1):
        job.practice_starts(seed)
    practice = [set(zip(tasks, starts, strict=True)) for tasks, starts, _ in picked]
    assert [split for *_, split in picked] == ["train", "train"] and not practice[0] & practice[1]
    demonstrated = {(task, start) for task in TASKS for start in range(5)}
    explored = {(TASKS[i % len(TASKS)], EXPLORATION_START + i) for i in range(4000)}
    trained = practice[0] | practice[1] | demonstrated | explored
    assert len(trained) == sum(map(len, practice)) + len(demonstrated) + len(explored)
    held_out = worlds(zip(*job.held_out(EvalConfig(), 0, 1000), strict=True), "test")
    same_numbers = worlds(trained, "test")
    assert not held_out & worlds(trained, "train") and len(held_out & same_numbers) == 50  # only the split parts these


def test_more_videos_than_imagined_episodes_are_written_all_the_same(folder, tmp_path):
    models = Models.load(folder)
    engine, run = job.make_engine(models, EngineConfig(horizon=2)), RunFolder.create(tmp_path / "run", {})
    measured = job.measure(models, engine, SMALL, start_seed=0, seed=0, title="small")
    job.write_videos(run, engine, measured, SMALL, 0, "before")
    names = sorted(path.name for path in run.videos.glob("*.webp"))
    assert names == [f"before-{i}-{TASKS[i].name}.webp" for i in range(2)]
    assert len(measured.trajectories) == 10 and len(measured.imagined.stopped) == 1
    assert measured.document()["n"] == 10


def test_imagined_and_true_episodes_begin_with_the_same_frames(folder):
    models = Models.load(folder)
    config = replace(SMALL, imagined=10)
    measured = job.measure(models, job.make_engine(models, EngineConfig(horizon=1)), config, 3, 0, "small")
    first = np.stack([t.frames[0, 0] for t in measured.trajectories])
    assert np.array_equal(measured.imagined.frame[:, 0].numpy(), first)


def test_document_says_per_task_what_was_imagined(folder):
    models = Models.load(folder)
    config = replace(SMALL, episodes=20, imagined=11)
    measured = job.measure(models, job.make_engine(models, EngineConfig(horizon=1)), config, 3, 0, "small")
    measured.imagined.stopped[:] = torch.arange(11) < 2
    imagined = {name: part["imagined"] for name, part in measured.document()["per_task"].items()}
    first, second, *others = (task.name for task in TASKS)
    assert imagined == {first: 0.5, second: 1.0} | dict.fromkeys(others, 0.0)
    measured.imagined.stopped = measured.imagined.stopped[:1]
    assert measured.document()["per_task"][second]["imagined"] is None  # no episode of it was imagined


def test_evaluation_of_a_run_takes_its_post_trained_policy(folder, tiny, tmp_path, same_weights):
    run = RunFolder.create(tmp_path / "run", {})
    (run.path / "models").mkdir()
    for name in ("simulator", "reflector", "policy"):
        (run.path / "models" / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    save_model(run.checkpoints / "policy.safetensors", tiny.policy(seed=9), {})
    models = job._models_of(EvaluateConfig(models=run.path))
    assert same_weights(models.policy, {k: v.half().float() for k, v in tiny.policy(seed=9).state_dict().items()})
    plain = job._models_of(EvaluateConfig(models=folder))
    assert same_weights(plain.policy, {k: v.half().float() for k, v in tiny.policy().state_dict().items()})
    assert job._models_of(EvaluateConfig(models=folder, zero_shot_judge=True)).reflector.zero_shot


def test_run_without_a_policy_yet_is_named(tmp_path, folder):
    run = RunFolder.create(tmp_path / "run", {})
    (run.path / "models").mkdir()
    (run.path / "models" / "reflector.safetensors").write_bytes((folder / "reflector.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="checkpoints/policy.safetensors: there is no such file"):
        job._models_of(EvaluateConfig(models=run.path))


def test_saved_configuration_leaves_out_where_the_run_lies_and_is_computed(tmp_path):
    saved = job._saved(TrainConfig(run=tmp_path, resume=True, seed=3))
    assert saved["seed"] == 3 and not {"run", "resume", "device"} & saved.keys()
    assert saved == json.loads(json.dumps(saved))


def test_result_that_is_not_finite_still_ends_in_valid_json(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", {})
    monkeypatch.setattr(job, "_print_table", lambda result: None)
    monkeypatch.setattr("worldenv.records.report.write_report", lambda folder: folder.path / "report.html")
    result = job._finish(run, {"wall_s": 1.0, "simulator": {"psnr": [float("inf"), 20.0]}})
    assert json.loads(json.dumps(result, allow_nan=False)) == {"wall_s": 1.0, "simulator": {"psnr": [None, 20.0]}}


def test_practice_starts_are_real_first_frames(monkeypatch):
    monkeypatch.setattr(job, "PRACTICE_STARTS", 20)
    starts = job.practice_starts(0)
    assert len(starts) == 20 and starts.frame.shape == (20, 64, 64, 3) and torch.isfinite(starts.proprio).all()
    assert not torch.equal(starts.frame[0], starts.frame[10])


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


def test_truth_and_imagination_are_compared_over_as_many_steps():
    def trajectory(done_at):
        return SimpleNamespace(success=np.arange(40) >= done_at)

    def gap(chunks, stops):  # imagined for so many chunks of 4; an episode without a stop: None
        steps = 4 * chunks
        imagined = SimpleNamespace(
            stopped=torch.tensor([stop is not None for stop in stops]),
            reward=torch.zeros(len(stops), chunks, 4),
            stop=torch.tensor([steps if stop is None else stop for stop in stops]),
        )
        return job.Measurement(None, [trajectory(at) for at in (3, 9, 30, 99)], imagined, {}).imagined_minus_true

    assert gap(10, [4, 12, None, None]) == pytest.approx(0.5 - 0.75)
    assert gap(2, [4, None, None, None]) == pytest.approx(0.25 - 0.25)  # truth beyond 8 steps is not imagined
    assert gap(20, [4, 12, 60, None]) == pytest.approx(0.5 - 0.75)  # nor is there a truth beyond 40
    assert gap(10, [4]) == pytest.approx(1.0 - 1.0)  # fewer imagined than true: the same starts


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_policy_is_measured_as_on_the_cpu_and_learns(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config, measured = replace(SMALL, imagined=10), []
    for device in ("cpu", "cuda"):
        models = Models.load(folder).to(device)
        engine = job.make_engine(models, EngineConfig(horizon=2), precision="float32")
        measured.append(job.measure(models, engine, config, 0, 0, "small"))
    here, there = measured
    np.testing.assert_allclose(there.true.reward[:, :8], here.true.reward[:, :8], atol=5e-3)  # before roundings grow
    torch.testing.assert_close(there.imagined.reward, here.imagined.reward, atol=5e-3, rtol=0)
    np.testing.assert_allclose(there.quality["psnr"], here.quality["psnr"], atol=0.1)
    starts = job.practice_starts(0).pick(torch.arange(4)).to(engine.world.device)
    rollouts = engine.run(starts, 4, seed=0)
    before = models.policy.action_head[-1].weight.clone()
    learner = Learner(models.policy, PostTrainConfig(siblings=4, signal=0.0))
    figures = learner.update(rollouts, group_advantage(rollouts, 4, 0.0)[0], torch.Generator().manual_seed(0))
    assert figures["chunks"] > 0 and learner.skipped == 0
    assert not torch.equal(models.policy.action_head[-1].weight, before)
