"""Configurations: contradictions are refused where they are made, and the presets hold together."""

from dataclasses import replace
from pathlib import Path

import pytest

from worldenv.config import EvaluateConfig, TrainConfig, presets
from worldenv.errors import UserError
from worldenv.training.config import ScratchConfig


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"resume": True}, "--resume needs --run"),
        ({"from_scratch": True, "models": Path("x")}, "leave out --models"),
        ({"seed": -1}, "--seed is -1; it must lie between 0 and"),
        ({"seed": 2**32}, "--seed is 4294967296; it must lie between 0 and"),
    ],
)
def test_contradictions_of_a_training_run_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**bad)


@pytest.mark.parametrize("config", [TrainConfig, EvaluateConfig])
def test_device_that_cannot_be_had_is_refused(config, monkeypatch):
    with pytest.raises(UserError, match="--device is 'cuda:1'; it should be cpu or cuda .CUDA_VISIBLE_DEVICES"):
        config(device="cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert config(device="cuda").device == "cuda"
    with pytest.raises(UserError, match="--precision int8 is for the CPU, and --device is cuda"):
        config(device="cuda", precision="int8")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device is cuda, but torch finds no CUDA device"):
        config(device="cuda")


def test_seed_of_an_evaluation_is_checked_too():
    with pytest.raises(UserError, match="--seed is -1"):
        EvaluateConfig(seed=-1)


@pytest.mark.parametrize(
    "bad",
    [{"action_episodes": 0}, {"action_episodes": 9, "pretraining_episodes": 8}, {"exploration": 0}, {"unroll": 0}],
)
def test_scratch_without_data_is_refused(bad):
    with pytest.raises(UserError, match="must"):
        ScratchConfig(**bad)


def test_presets_of_the_causal_world_model_make_all_models_and_the_tiny_one_is_smaller():
    whole, tiny = (presets()[f"tabletop-causal{size}"][1] for size in ("", "-tiny"))
    assert whole.world == tiny.world == "causal" and whole.from_scratch and tiny.from_scratch
    assert replace(tiny, rl=whole.rl, eval=whole.eval, scratch=whole.scratch) == whole
    assert tiny.scratch.base.steps < whole.scratch.base.steps and tiny.rl.iterations < whole.rl.iterations


def test_presets_have_descriptions_and_the_quick_one_is_smaller_everywhere():
    chosen = presets()
    assert all(description for description, _ in chosen.values())
    usual, quick = chosen["tabletop"][1], chosen["tabletop-quick"][1]
    assert usual == TrainConfig()
    assert quick.rl.iterations < usual.rl.iterations and quick.eval.episodes < usual.eval.episodes
    assert quick.scratch.base.steps < usual.scratch.base.steps and quick.scratch.exploration < usual.scratch.exploration
    assert replace(quick, rl=usual.rl, eval=usual.eval, scratch=usual.scratch) == usual
