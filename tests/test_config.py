"""Configurations: contradictions are refused where they are made, and the presets hold together."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

import worldenv
from worldenv.commands.options import training
from worldenv.config import EvaluateConfig, TrainConfig, presets
from worldenv.errors import UserError
from worldenv.policy.openvla_oft.config import OpenVLAConfig
from worldenv.reflector.transformers_vlm import VlmConfig
from worldenv.rl.config import PostTrainConfig
from worldenv.suites.libero.tasks import HORIZONS, SMALL
from worldenv.training.config import SCRATCH_PRESETS, ScratchConfig
from worldenv.training.fit import Schedule
from worldenv.training.lessons import CHUNK
from worldenv.worlds.causal.network import CausalConfig

STILLS = ScratchConfig(stills=5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"resume": True}, "--resume needs --run"),
        ({"from_scratch": True, "scratch": STILLS}, "stills is 5, and only these .*: libero_object-small"),
        ({"seed": -1}, "seed is -1; it should be a whole number from 0 to 4,294,967,295"),
        ({"seed": 2**32}, "seed is 4294967296; it should be"),
        ({"start_seed": 2**31}, "start_seed is 2147483648; it should be"),
        ({"start_seed": -(2**31) - 1}, "start_seed is -2147483649; it should be"),
        ({"suite": None}, "suite is None; it should be of type str"),
        ({"rl": {}}, "rl is {}; it should be of type PostTrainConfig"),
        ({"run": Path(worldenv.__file__).parent / "x"}, "in the folder of the package itself"),
        ({"run": Path("x"), "models": Path("y/../x")}, "run and models are one folder, x"),
        ({"rounds": 0}, "rounds is 0; it should be a whole number from 1 to 1,000"),
        ({"rounds": 97}, "rounds is 97; it should not exceed the iterations .* --rl.iterations 96"),
        ({"rounds": 2, "suite": "a:b"}, "of the suites tabletop, .*; the run has --suite a:b: take rounds 1"),
        ({"rounds": 2, "policy": "a:b"}, "the run has --policy a:b"),
        ({"rounds": 2, "world": "causal"}, "the run has --world causal"),
        (
            {"rounds": 2, "rl": PostTrainConfig(off_policy=True)},
            "rounds is 2; a round begins with models .*off-policy",
        ),
        ({"rounds": 2, "reflector": "zero-shot"}, "the run has --reflector zero-shot"),
    ],
)
def test_contradictions_of_a_training_run_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**bad)


@pytest.mark.parametrize("config", [TrainConfig, EvaluateConfig])
def test_device_that_cannot_be_had_is_refused(config, monkeypatch):
    with pytest.raises(UserError, match="device is 'cuda:1'; it should be cpu or cuda"):
        config(device="cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert config(device="cuda").device == "cuda"
    with pytest.raises(UserError, match="--precision int8 is for the CPU, and --device is cuda"):
        config(device="cuda", precision="int8")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device is cuda, but torch finds no CUDA device"):
        config(device="cuda")


def test_seed_of_an_evaluation_is_checked_too():
    with pytest.raises(UserError, match="^seed is -1"):
        EvaluateConfig(seed=-1)


@pytest.mark.parametrize(
    "bad",
    [
        {"action_episodes": 0},
        {"action_episodes": 9, "pretraining_episodes": 8},
        {"exploration": 0},
        {"again": 10**6},
        {"perturb": math.nan},
        {"again_noise": -0.1},
        {"imagined_share": 0.0},
        {"extra_data": "yes"},
        {"unroll": 11},  # of 4 steps each, in an episode of 40
        {"causal_chunks": 11},
        {"adapt": Schedule(1, 1, 1e-3)},  # half of a batch are true frames, half imagined ones
        {"causal": CausalConfig(image_size=128)},  # the suite has pictures of 64
        {"causal": CausalConfig(chunk=8)},  # the policy acts in chunks of 4
        {"causal": CausalConfig(patch=64, map_shrink=4, channels=513)},  # the tokenizer is fitted to 512 patches
    ],
)
def test_scratch_that_would_fail_after_hours_is_refused(bad):
    with pytest.raises(UserError, match=f"^{next(iter(bad))} is "):
        ScratchConfig(**bad)


@pytest.mark.parametrize(
    ("iterations", "rounds", "begins"), [(36, 1, [0]), (4, 3, [0, 1, 2]), (36, 5, [0, 7, 14, 21, 28])]
)
def test_rounds_share_the_iterations(iterations, rounds, begins):
    config = TrainConfig(rounds=rounds, rl=PostTrainConfig(iterations=iterations))
    found = [config.round_of(iteration) for iteration in range(iterations)]
    assert [found.index(number) for number in range(rounds)] == begins and found == sorted(found)


def test_presets_of_the_causal_world_model_make_all_models_and_the_tiny_one_is_smaller():
    whole, tiny = (presets()[f"tabletop-causal{size}"][1] for size in ("", "-tiny"))
    assert whole.world == tiny.world == "causal" and whole.from_scratch and tiny.from_scratch
    assert replace(tiny, rl=whole.rl, eval=whole.eval, scratch=whole.scratch) == whole
    assert tiny.scratch.base.steps < whole.scratch.base.steps and tiny.rl.iterations < whole.rl.iterations


def test_presets_of_metaworld_make_all_models_of_another_suite_and_the_tiny_one_is_smaller():
    whole, tiny = (presets()[f"metaworld{size}"][1] for size in ("", "-tiny"))
    assert (whole.suite, whole.world, whole.from_scratch) == ("metaworld", "causal", True)
    assert replace(tiny, rl=whole.rl, eval=whole.eval, scratch=whole.scratch) == whole
    assert tiny.scratch.base.steps < whole.scratch.base.steps and tiny.rl.iterations < whole.rl.iterations


def test_presets_of_libero_make_all_models_of_some_tasks_and_the_tiny_one_is_smaller():
    whole, tiny = (presets()[f"libero-small{size}"][1] for size in ("", "-tiny"))
    assert (whole.suite, whole.world, whole.from_scratch) == ("libero_object-shuffled", "composer", True)
    same = {name: getattr(whole, name) for name in ("suite", "rl", "eval", "refresh", "scratch")}
    assert tiny.suite == "libero_object-tiny" and replace(tiny, **same) == whole
    without = replace(whole.scratch, stills=0)  # which only LIBERO Object has
    assert replace(whole, suite="libero_spatial-small", scratch=without).from_scratch
    for name, (benchmark, given) in SMALL.items():
        assert given["horizon"] % CHUNK == 0 and set(given["tasks"]) <= set(range(10)) and benchmark in HORIZONS
        assert len(given["tasks"]) >= 5 or name.endswith("-tiny")


@pytest.mark.parametrize(("name", "suite"), [("spatial", "libero_spatial"), ("long", "libero_10")])
def test_presets_of_libero_at_full_size_are_the_paper_s_on_another_suite(name, suite):
    config = presets()[f"libero-{name}"][1]
    assert config == replace(presets()["paper-libero"][1], suite=f"{suite}-official")


@pytest.mark.parametrize(
    "other", [{"suite": "metaworld_mt10"}, {"suite": "libero_object", "world": "causal"}, {"world": "a:b"}]
)
def test_models_from_scratch_are_refused_where_nothing_makes_them(other):
    with pytest.raises(
        UserError, match="of the suites tabletop, metaworld, libero_object-small, .* --world composer or"
    ):
        TrainConfig(from_scratch=True, **other)


@pytest.mark.parametrize("suite", ["tabletop", "metaworld", "libero_object-small", "libero_spatial-small"])
def test_both_world_models_are_made_from_scratch_for_every_suite_that_has_lessons(suite):
    for world in ("composer", "causal"):
        assert TrainConfig(from_scratch=True, suite=suite, world=world).world == world


@pytest.mark.parametrize(("suite", "preset"), SCRATCH_PRESETS.items())
def test_every_suite_whose_models_are_made_has_a_preset_with_its_settings(suite, preset):
    config = training([preset, "--from-scratch", "--suite", suite, "--scratch.stills", "0"])  # not all have stills
    whole = presets()[preset][1]
    assert config == replace(whole, from_scratch=True, suite=suite, scratch=replace(whole.scratch, stills=0))


def test_preset_of_the_paper_has_its_numbers():
    config = presets()["paper-libero"][1]
    rl, judge = config.rl, VlmConfig(vlm=Path("x"))
    assert (rl.siblings, rl.clip, rl.minibatch) == (8, 0.1, 4)
    assert (rl.learning_rate, rl.head_learning_rate) == (1e-4, 1e-5)
    assert (OpenVLAConfig().lora, judge.threshold, judge.samples) == (32, 0.5, 32)  # the defaults of the parts
    theirs = presets()["rlinf-wan-libero"][1]
    assert theirs.world.startswith("rlinf-wan:") and replace(theirs, world=config.world) == config


@pytest.mark.parametrize("name", ["paper-libero", "rlinf-wan-libero"])
def test_preset_asks_for_all_folders_that_lack_in_one_line(name, tmp_path):
    config = presets()[name][1]
    config = replace(config, run=tmp_path / "run")
    asked = "--policy openvla-oft:FOLDER --world (svd|rlinf-wan):FOLDER --reflector vlm:FOLDER, each"
    with pytest.raises(UserError, match=f"needs folders that you have downloaded: give {asked}"):
        worldenv.train(config)
    with pytest.raises(UserError, match="give --reflector vlm:FOLDER, each"):
        worldenv.train(replace(config, policy="openvla-oft:mine", world="svd:mine"))
    assert not (tmp_path / "run").exists()


def test_presets_have_descriptions_and_the_quick_one_is_smaller_everywhere():
    chosen = presets()
    assert all(description for description, _ in chosen.values())
    usual, quick = chosen["tabletop"][1], chosen["tabletop-quick"][1]
    assert usual == TrainConfig()
    assert quick.rl.iterations < usual.rl.iterations and quick.eval.episodes < usual.eval.episodes
    assert quick.scratch.base.steps < usual.scratch.base.steps and quick.scratch.exploration < usual.scratch.exploration
    assert quick.refresh.student.steps < usual.refresh.student.steps and quick.refresh.episodes < usual.refresh.episodes
    same = {name: getattr(usual, name) for name in ("rl", "eval", "scratch", "refresh")}
    assert replace(quick, **same) == usual
