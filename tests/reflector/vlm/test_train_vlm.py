"""Heads and adapters of released models: trained from recorded frames, saved, resumed, refused where they misfit."""

import json
import shutil

import numpy as np
import pytest
import torch

import worldenv
from worldenv.commands import cli
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.errors import UserError
from worldenv.evaluation.truth import judge_trajectories
from worldenv.reflector.transformers_vlm import VlmConfig, fingerprint, load_vlm_reflector, new_vlm_reflector
from worldenv.reflector.vlm.lora import Adapter
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS
from worldenv.training import fit as loop
from worldenv.training.fit import Schedule
from worldenv.training.train_vlm import VlmTraining, train_vlm

VIEWS = ("agentview",)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """An expert's episode of each of four tasks."""
    folder = tmp_path_factory.mktemp("recorded") / "demonstrations"
    with TrajectoryWriter(folder) as writer:
        for trajectory in demonstrate(TASKS[:4], range(4), "train"):
            writer.write(trajectory)
    return folder


@pytest.fixture
def training(released, recorded, tmp_path):
    def made(mode, family="smolvlm", steps=6, every=2, **more):
        ask = VlmConfig(vlm=released(family), mode=mode, side=28, samples=8, every=every, width=64)
        schedule = Schedule(steps=steps, batch=8, learning_rate=5e-3, save_every_s=0.0)
        return VlmTraining(ask=ask, data=(recorded,), run=tmp_path / "run", schedule=schedule, **more)

    return made


@pytest.mark.parametrize(("mode", "family"), [("features", "qwen3_vl"), ("language", "smolvlm")])
def test_trained_head_tells_success_from_the_rest_and_is_read_again(training, recorded, mode, family):
    config = training(mode, family, steps=150)
    before = fingerprint(config.ask.vlm)
    result = train_vlm(config)
    assert result["episodes"] == 4 and result["metrics"]["bce"] < 0.5 and fingerprint(config.ask.vlm) == before
    trajectories = list(TrajectoryReader(recorded))
    length = min(len(t.actions) for t in trajectories)
    judge = load_vlm_reflector(config.run, VIEWS)
    again = worldenv.load(reflector=result["reflector"]).reflector
    parts = [judge_trajectories(judge, [t])[0][0] for t in trajectories]
    labels = [np.append(False, t.success[1:] & t.success[:-1])[1::2] for t in trajectories]  # frames 2, 4, ...
    reward, label = np.concatenate([part[1::2] for part in parts]), np.concatenate(labels)
    assert reward[label].mean() > 2 * reward[~label].mean()
    cut = [worldenv.Trajectory(**{**vars(t), **cut_to(t, length)}) for t in trajectories[:2]]
    assert np.array_equal(judge_trajectories(judge, cut)[0], judge_trajectories(again, cut)[0])


def cut_to(t, length):
    parts = {name: getattr(t, name)[: length + 1] for name in ("frames", "proprio")}
    return parts | {name: getattr(t, name)[:length] for name in ("actions", "success")}


@pytest.mark.parametrize(("mode", "lora"), [("language", 0), ("zero-shot", 2)])
def test_interrupted_training_ends_as_if_it_had_not_been(training, monkeypatch, mode, lora):
    config = training(mode, lora=lora)
    train_vlm(config)
    whole = read_weights(config.run)
    shutil.rmtree(config.run)
    step, calls = loop._step, iter(range(100))

    def stopped(*given):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_vlm(config)
    assert not (config.run / "reflector.json").exists()
    monkeypatch.setattr(loop, "_step", step)
    train_vlm(VlmTraining(**vars(config) | {"resume": True}))
    resumed = read_weights(config.run)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(UserError, match="has other settings"):
        train_vlm(VlmTraining(**vars(config) | {"resume": True, "negatives": 0.5}))


def read_weights(folder):
    from safetensors.torch import load_file

    files = [folder / "head.safetensors", folder / "adapter" / "adapter_model.safetensors"]
    return {f"{path.name}/{k}": v for path in files if path.exists() for k, v in load_file(path).items()}


@pytest.mark.parametrize(
    ("mode", "family"),
    [
        *(("language", family) for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")),
        ("zero-shot", "llava_onevision"),
    ],
)
def test_every_matrix_of_the_adapter_learns_and_peft_reads_it(training, frames, mode, family):
    config = training(mode, family, lora=2)
    torch.manual_seed(config.seed)
    new = {k: v.clone() for k, v in new_vlm_reflector(config.ask, VIEWS, 2).named_parameters() if "lora_" in k}
    train_vlm(config)
    judge = load_vlm_reflector(config.run, VIEWS)
    now = {name: parameter for name, parameter in judge.named_parameters() if "lora_" in name}
    assert now.keys() == new.keys() and len(now) == 2 * 2 * 7  # A and B of 7 matrices of 2 layers
    assert all(not torch.equal(now[name], new[name]) for name in new)
    assert not any(parameter.requires_grad for parameter in judge.vlm.parameters())

    import peft

    base = new_vlm_reflector(config.ask, VIEWS)
    shown = frames(1, 2)
    tokens, prompt = base.tokens(shown), base.read(["lift it"])
    with torch.no_grad():
        plain = base.hidden(prompt, tokens)
        base.vlm.network = peft.PeftModel.from_pretrained(base.vlm.network, config.run / "adapter").base_model.model
        adapted, expected = base.hidden(prompt, tokens), judge.hidden(prompt, tokens)
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-6)
    assert (adapted - plain).abs().max() > 1e-4


def damaged(folder, change):
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "as safetensors"),
        (lambda f: damaged(f, lambda d: d.update(peft_type="IA3")), "of type 'IA3'; LORA was expected"),
        (lambda f: damaged(f, lambda d: d.update(r=3)), r"adapter_model.safetensors has .* where .* fits"),
        (lambda f: damaged(f, lambda d: d.update(target_modules=r".*q_proj")), "which this model does not know"),
        (lambda f: damaged(f, lambda d: d.update(target_modules=["nothing"])), "adapter_config.json does not fit"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(reflector, tmp_path, change, message):
    judge = reflector("smolvlm")
    fresh = new_vlm_reflector(judge.config, VIEWS)
    Adapter.new(fresh.vlm, 2).save(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        Adapter.load(new_vlm_reflector(judge.config, VIEWS).vlm, tmp_path)


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("features", {"lora": 4}, "take mode language"),
        ("zero-shot", {}, "give lora a rank"),
        ("language", {"data": ()}, "names no recorded episodes"),
        ("language", {"device": "tpu"}, "device is 'tpu'; it should be cpu or cuda"),
    ],
)
def test_settings_that_train_nothing_are_refused(training, mode, more, message):
    config = training("language")
    ask = VlmConfig(**vars(config.ask) | {"mode": mode})
    with pytest.raises(UserError, match=message):
        VlmTraining(**vars(config) | {"ask": ask} | more)


def test_recordings_in_which_nothing_is_done_when_it_is_asked_are_refused(training):
    with pytest.raises(UserError, match="no frame that the judge is asked about shows a success"):
        train_vlm(training("language", every=64))


def test_run_that_is_there_or_not_there_is_refused_before_the_model_is_loaded(training, monkeypatch):
    monkeypatch.setattr("worldenv.training.train_vlm.new_vlm_reflector", None)
    config = training("language")
    with pytest.raises(UserError, match="does not exist or is not a run"):
        train_vlm(VlmTraining(**vars(config) | {"resume": True}))
    config.run.mkdir()
    with pytest.raises(UserError, match="is there already; choose another --run"):
        train_vlm(config)


def test_command_trains_and_names_the_reflector(released, recorded, tmp_path, capsys):
    words = f"--vlm {released('smolvlm')} --mode language --every 2 --data {recorded} --run {tmp_path / 'run'}"
    cli.reflector([*words.split(), "--steps", "2", "--batch", "4"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["reflector"] == f"vlm:{tmp_path / 'run'}" and result["steps"] == 2
    with pytest.raises(SystemExit) as ended:
        cli.reflector(
            ["--vlm", str(tmp_path), "--data", str(recorded), "--run", str(tmp_path / "other"), "--lora", "2"]
        )
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and error == [
        f"worldenv-reflector: {tmp_path} has no config.json, so it is no whole "
        "released model; download the folder again, whole"
    ]
