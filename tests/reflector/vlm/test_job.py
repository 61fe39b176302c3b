"""The commands with a released model as judge: practise, go on, evaluate, from any folder."""

import json
from dataclasses import replace

import pytest

import worldenv
from worldenv.commands.saved import document, settled
from worldenv.rl.config import PostTrainConfig

EVAL = worldenv.EvalConfig(episodes=10, imagined=2, quality=2, videos=0)


def test_name_with_a_folder_is_kept_with_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settled(worldenv.TrainConfig(reflector="vlm:models/a:b"))
    assert config.reflector == f"vlm:{tmp_path}/models/a:b" and settled(config) == config
    assert document(config)["modules"] == {} and document(config)["reflector"] == config.reflector
    assert settled(replace(config, reflector="mine:judge")).reflector == "mine:judge"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm"])
def test_policy_practises_under_a_released_judge(released, tmp_path, monkeypatch, same_weights, family):
    config = practice(released(family), tmp_path, monkeypatch)
    result = worldenv.train(config)
    policy = worldenv.load_run(tmp_path / "run").policy
    assert not same_weights(policy, worldenv.load().policy) and result["success_after"]["n"] == 10


def practice(model, folder, monkeypatch):
    """One iteration under the judge of a model, named by a path that begins in the working directory."""
    (folder / "judge").mkdir()
    (folder / "judge" / "reflector.json").write_text(json.dumps({"vlm": str(model), "every": 8, "side": 28}))
    monkeypatch.chdir(folder)
    rl = PostTrainConfig(iterations=1, starts=2, siblings=4, signal=0.0, warmup=1)
    return worldenv.TrainConfig(run=folder / "run", reflector="vlm:judge", rl=rl, eval=EVAL)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "smolvlm"])  # Qwen2.5-VL: with the whole pair
def test_run_goes_on_and_is_measured_from_another_folder(released, tmp_path, monkeypatch, family):
    config = practice(released(family), tmp_path, monkeypatch)
    worldenv.train(config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    used = replace(config, reflector=f"vlm:{tmp_path}/judge", resume=True, rl=replace(config.rl, iterations=2))
    longer = worldenv.train(used)
    assert longer["counts"]["groups"] == 4
    again = worldenv.load_run(tmp_path / "run")
    assert again.reflector.config.every == 8 and again.reflector.config.vlm == released(family)
    result = worldenv.evaluate(worldenv.EvaluateConfig(models=tmp_path / "run", run=tmp_path / "measured"))
    assert result["success"] == longer["success_after"]
