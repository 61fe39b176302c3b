"""The commands with a released model as judge: practise, go on, evaluate, from any folder."""

import json
from dataclasses import replace

import worldenv
from worldenv.rl.config import PostTrainConfig
from worldenv.saved import document, settled

EVAL = worldenv.EvalConfig(episodes=10, imagined=2, quality=2, videos=0)


def test_name_with_a_folder_is_kept_with_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settled(worldenv.TrainConfig(reflector="vlm:models/a:b"))
    assert config.reflector == f"vlm:{tmp_path}/models/a:b" and settled(config) == config
    assert document(config)["modules"] == {} and document(config)["reflector"] == config.reflector
    assert settled(replace(config, reflector="mine:judge")).reflector == "mine:judge"


def test_policy_practises_under_a_released_judge_and_the_run_goes_on(released, tmp_path, monkeypatch, same_weights):
    judge = tmp_path / "judge"
    judge.mkdir()
    (judge / "reflector.json").write_text(json.dumps({"vlm": str(released("smolvlm")), "every": 8}))
    monkeypatch.chdir(tmp_path)
    rl = PostTrainConfig(iterations=1, starts=2, siblings=4, signal=0.0, warmup=1)
    config = worldenv.TrainConfig(run=tmp_path / "run", reflector="vlm:judge", rl=rl, eval=EVAL)
    first = worldenv.train(config)
    policy = worldenv.load_run(tmp_path / "run").policy
    assert not same_weights(policy, worldenv.load().policy) and first["success_after"]["n"] == 10
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = worldenv.load_run(tmp_path / "run")
    assert again.reflector.config.every == 8 and again.reflector.config.vlm == released("smolvlm")
    result = worldenv.evaluate(worldenv.EvaluateConfig(models=tmp_path / "run", run=tmp_path / "measured"))
    assert result["success"]["n"] == 10 and result["success"] == first["success_after"]
