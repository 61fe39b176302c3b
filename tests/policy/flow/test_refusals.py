"""Wrong folders and settings: one clear error each, with file and remedy, before anything large is read."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from worldenv.errors import UserError
from worldenv.fields import FieldError
from worldenv.policy.flow.config import FlowConventions, Pi0Config, SmolVLAConfig
from worldenv.policy.flow.folder import inspect_policy
from worldenv.records.released import Release
from worldenv.robot.robot import Robot

BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


@pytest.fixture(autouse=True)
def nothing_large_is_read(monkeypatch):
    def refuse(*given):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Release, "fill", refuse)


def remove(name):
    return lambda release: (release.path / name).unlink()


def config(**values):
    return lambda release: release.change(**values)


def weights(change):
    def work(release):
        tensors = release.tensors()
        change(tensors)
        save_file(tensors, release.path / "model.safetensors")

    return work


def step(name, change):
    def work(release):
        document = release.json(name)
        change(document["steps"][1])
        release.write_json(name, document)

    return work


def norm_map(**modes):
    return step(BEFORE, lambda entry: entry["config"]["norm_map"].update(modes))


def take(ending):
    return weights(lambda tensors: tensors.pop(next(key for key in tensors if key.endswith(ending))))


def as_pickle(release):
    (release.path / "model.safetensors").rename(release.path / "pytorch_model.bin")


def of_several(release):
    release.write_json("model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})


BOTH = {
    "no configuration": (remove("config.json"), "has no config.json"),
    "other architecture": (config(type="pi05"), "is of the architecture 'pi05', not "),
    "no weights": (remove("model.safetensors"), "has neither model.safetensors nor"),
    "a pickle": (as_pickle, "has its weights in pytorch_model.bin: pickles"),
    "missing shard": (of_several, "lacks model-00001-of-00002.safetensors: 1 of the 1 files"),
    "cut weights": (
        lambda r: (r.path / "model.safetensors").write_bytes((r.path / "model.safetensors").read_bytes()[:5000]),
        "is no complete safetensors file",
    ),
    "missing tensor": (take("layers.1.mlp.up_proj.weight"), "lacks .*layers.1.mlp.up_proj.weight"),
    "renamed tensor": (
        weights(lambda t: t.update(other=t.pop("model.action_out_proj.bias"))),
        "lacks .*action_out_proj.bias; has other, which this model does not know",
    ),
    "wider head": (
        weights(lambda t: t.update({"model.action_out_proj.weight": torch.ones(5, 7)})),
        r"action_out_proj.weight \[5, 7\] where \[12, ",
    ),
    "an adapter alone": (
        lambda r: (r.path / "model.safetensors").rename(r.path / "adapter_model.safetensors"),
        "has an adapter alone, adapter_model.safetensors; merge it into the policy that it was trained on",
    ),
    "no processor": (remove(BEFORE), "has neither policy_preprocessor.json nor processor_config.json, so state and"),
    "no statistics": (
        remove("policy_preprocessor_step_5_normalizer_processor.safetensors"),
        "lacks policy_preprocessor_step_5_normalizer_processor.safetensors, the statistics that policy_pre",
    ),
    "no step": (step(BEFORE, lambda e: e.update(registry_name="x")), "has no step normalizer_processor with a file"),
    "a file elsewhere": (
        step(AFTER, lambda e: e.update(state_file="../x.safetensors")),
        "policy_postprocessor.json has no step unnormalizer_processor with a file of statistics beside it",
    ),
    "statistics without deviation": (
        lambda r: r.statistics(observation__state__std=None),
        "lacks observation.state.std, by which MEAN_STD normalises",
    ),
    "statistics of another robot": (
        lambda r: r.statistics(action__mean=[0.0] * 6, action__std=[1.0] * 6),
        "action has statistics of 6 and 6 numbers, and the policy has 7",
    ),
    "statistics that are not finite": (
        lambda r: r.statistics(action__std=[float("nan")] * 7),
        "action.std holds numbers that are not finite",
    ),
    "unknown mode": (norm_map(STATE="WHITENED"), "observation.state is normalised by 'WHITENED'; known are MEAN_STD"),
    "normalised pictures": (norm_map(VISUAL="MEAN_STD"), "pictures are normalised by 'MEAN_STD'; only IDENTITY"),
    "two looks back": (config(n_obs_steps=2), "n_obs_steps is 2, and only 1 is known here"),
    "Aloha's joints": (config(adapt_to_pi_aloha=True), "adapt_to_pi_aloha is True, and only False is known here"),
    "relative actions": (config(use_relative_actions=True), "use_relative_actions is True, and only False is known"),
    "no size of a chunk": (config(chunk_size=None), "chunk_size is None; it should be a whole number above 0"),
    "features of another kind": (config(input_features=["state"]), "input_features or output_features are of another"),
    "unknown setting": (lambda r: r.write_json("worldenv.json", {"step": 8}), "worldenv.json .*does not know 'step'"),
    "wrong setting": (lambda r: r.write_json("worldenv.json", {"steps": 0}), "worldenv.json: steps is 0; it should be"),
    "a damaged scale head": (
        lambda r: save_file({"norm.weight": torch.ones(3)}, r.path / "worldenv_scale_head.safetensors"),
        "worldenv_scale_head.safetensors lacks inner.bias.* Delete it, for a new one",
    ),
}
PI0 = {
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json: .* tokens of google/paligemma-3b-pt-224; copy"),
    "tokenizer of another model": (
        lambda r: (r.path / "tokenizer.json").write_text(
            (r.path / "tokenizer.json").read_text().replace("<bos>", "<x>")
        ),
        "has no token <bos>, so it is not that of google/paligemma",
    ),
    "damaged tokenizer": (lambda r: (r.path / "tokenizer.json").write_text("{}"), "tokenizer.json is no tokenizer"),
    "other pictures": (
        config(image_resolution=[224, 224]),
        "image_resolution is .224, 224., and the tower looks at 28",
    ),
    "no tower": (take("patch_embedding.weight"), "has no whole pi0: 'model.vlm.vision_tower.* is missing"),
    "no steps": (config(num_inference_steps=0), "num_inference_steps is 0; it should be a whole number above 0"),
}
SMOLVLA = {
    "no underlying model": (lambda r: shutil.rmtree(r.path / "vlm"), "vlm has no config.json of the model that"),
    "another underlying model": (
        lambda r: r.write_json("vlm/config.json", {"model_type": "paligemma"}),
        "vlm/config.json is of the architecture 'paligemma', not smolvlm",
    ),
    "a wider underlying model": (
        lambda r: r.write_json(
            "vlm/config.json",
            r.json("vlm/config.json") | {"text_config": r.json("vlm/config.json")["text_config"] | {"hidden_size": 64}},
        ),
        r"action_in_proj.bias \[24\] where \[48\] fits.* The sizes are those of .*/vlm/config.json: give",
    ),
    "a shorter underlying model": (
        config(num_vlm_layers=9),
        "vlm/config.json has 4 layers, and num_vlm_layers of the policy is 9",
    ),
    "fewer layers": (config(num_vlm_layers=2), "has .*layers.2.*, which this model does not know"),
    "another expert": (config(num_expert_layers=2), "num_expert_layers is 2, and the language model has 3"),
    "another width": (config(expert_width_multiplier=0.5), r"where \[.*16.*\] fits"),
    "layers that look at both": (config(self_attn_every_n_layers=1), r"k_proj.weight \[16, 16\] where \[16, 24\] fits"),
    "image tokens": (config(add_image_special_tokens=True), "add_image_special_tokens is True"),
    "pictures as they come": (
        config(resize_imgs_with_padding=None),
        "resize_imgs_with_padding is None; it should be twice",
    ),
    "pictures that are no squares": (
        config(resize_imgs_with_padding=[32, 48]),
        "should be twice a multiple of 16 pixels",
    ),
    "no tokenizer": (remove("vlm/tokenizer.json"), "has no tokenizer.json: .* tokens of HuggingFaceTB/SmolVLM2"),
}
WRONG = [(k, n, c) for k in ("pi0", "smolvla") for n, c in BOTH.items()]
WRONG += [("pi0", n, c) for n, c in PI0.items()] + [("smolvla", n, c) for n, c in SMOLVLA.items()]


@pytest.mark.parametrize(("kind", "name", "case"), WRONG, ids=[f"{kind}: {name}" for kind, name, _ in WRONG])
def test_what_is_wrong_with_a_folder_is_said(copied, kind, name, case, shows):
    release, (change, message) = copied(kind), case
    change(release)
    suite = shows("agentview")
    with pytest.raises(UserError) as error:
        inspect_policy(release.path, suite, kind)
    said = str(error.value)
    assert re.search(message, said), said
    assert str(release.path) in said and "\n" not in said and len(said) < 700


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": ("left",)}, "views has left, which libero_spatial does not show; it has agentview"),
        ({"views": ("agentview", "wrist")}, "looks at 1 pictures, .* and there are 2 views, agentview, wrist: name as"),
        ({"chunk": 7}, "chunk is 7, and .* predicts 6 actions; take as many or fewer"),
        ({"layers": "encoder.*"}, "layers is .encoder\\.\\*., which fits no linear layer; there are net"),
        ({"vlm": "nowhere"}, "nowhere has no tokenizer.json: "),
        (
            {"conventions": FlowConventions(proprio=(0,), proprio_factor=(1.0,))},
            "has 1 numbers, and the policy reads 8",
        ),
        (
            {"conventions": FlowConventions(proprio=tuple(range(8)))},
            "names number 7, and the robot of libero_spatial has 7",
        ),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(written, values, message, shows):
    suite = shows("agentview")
    with pytest.raises(UserError, match=message):
        inspect_policy(written["pi01"].path, suite, "pi0", Pi0Config(**values))


def test_a_policy_of_two_pictures_is_refused_where_there_is_one(written, shows):
    suite = shows("agentview")
    with pytest.raises(
        UserError, match="looks at 2 pictures, .* there are 1 views, agentview: take a suite with as many"
    ):
        inspect_policy(written["smolvla2"].path, suite, "smolvla")


def test_a_robot_with_other_actions_is_refused(written):
    suite = SimpleNamespace(name="pens", views=("above",), robot=Robot(("x",), ("dx", "dy"), (0.0,), (1.0,)))
    with pytest.raises(UserError, match="acts with 7 numbers, the robot of pens with 2"):
        inspect_policy(written["pi01"].path, suite, "pi0")


def test_settings_of_the_other_kind_are_refused(written, shows):
    suite = shows("agentview")
    with pytest.raises(UserError, match="config is a SmolVLAConfig; it should be worldenv.Pi0Config"):
        inspect_policy(written["pi01"].path, suite, "pi0", SmolVLAConfig())
    with pytest.raises(UserError, match="is of the architecture 'smolvla', not pi0"):
        inspect_policy(written["smolvla1"].path, suite, "pi0")


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "peft"])
def test_a_missing_package_is_named_with_its_extra(written, monkeypatch, package, shows):
    monkeypatch.setitem(sys.modules, package, None)
    suite = shows("agentview")
    with pytest.raises(UserError, match=rf'released models need {package}: pip install "worldenv\[models\]"'):
        inspect_policy(written["smolvla1"].path, suite, "smolvla")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk": 1.5}, "chunk is 1.5"),
        ({"steps": 251}, "steps is 251"),
        ({"views": ()}, "views is .*distinct names of cameras"),
        ({"exploration": "none"}, "exploration is 'none'; it should be laplace or sde"),
        ({"noise_level": 0.0}, "noise_level is 0.0"),
        ({"scale": 0.9}, "scale is 0.9; it should lie between scale_low, 0.02, and scale_high, 0.5"),
        ({"layers": "("}, r"layers is '\(', no regular expression"),
        ({"conventions": {}}, "conventions is {}; it should be of type FlowConventions"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        Pi0Config(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"orientation": "sideways"}, "orientation is 'sideways'"),
        ({"resize": "nearest"}, "resize is 'nearest'; it should be bilinear or bicubic"),
        ({"place": "top"}, "place is 'top'; it should be middle or left-top or right-bottom"),
        ({"gripper": (0.0, 1.0)}, "gripper is a factor of 0"),
        ({"proprio": (0, 1)}, "proprio has 2 numbers, proprio_factor 8"),
    ],
)
def test_a_convention_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        FlowConventions(**values)


def test_a_folder_may_change_some_conventions_and_keep_the_others(copied, shows):
    release = copied("smolvla")
    (release.path / "worldenv.json").write_text(json.dumps({"conventions": {"orientation": "upright"}}))
    suite = shows("agentview")
    found = inspect_policy(release.path, suite, "smolvla")
    assert (found.config.conventions.orientation, found.config.conventions.place) == ("upright", "left-top")
