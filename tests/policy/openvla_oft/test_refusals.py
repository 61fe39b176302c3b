"""Wrong folders and settings: one clear error each, with file and remedy, before anything large is read."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from worldenv.errors import UserError
from worldenv.fields import FieldError
from worldenv.policy.openvla_oft.config import OpenVLAConfig, OpenVLAConventions
from worldenv.policy.openvla_oft.folder import inspect_policy
from worldenv.policy.openvla_oft.policy import load_openvla_oft
from worldenv.records.released import Release
from worldenv.robot.robot import Robot

HEAD, PROJECTOR = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"


@pytest.fixture(autouse=True)
def nothing_large_is_read(monkeypatch):
    def refuse(*given):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Release, "fill", refuse)


def remove(name):
    return lambda release: (release.path / name).unlink()


def text_config(**values):
    def change(release):
        release.change("config.json", text_config=release.json("config.json")["text_config"] | values)

    return change


def head(change):
    def work(release):
        state = torch.load(release.path / HEAD, weights_only=True)
        change(state)
        torch.save(state, release.path / HEAD)

    return work


def statistics(**values):
    def change(release):
        document = release.json("dataset_statistics.json")
        document["libero_spatial_no_noops"] |= values
        release.write_json("dataset_statistics.json", document)

    return change


def add(name):
    return lambda release: torch.save({"weight": torch.ones(1)}, release.path / name)


def rename(state):
    state["module.model.other"] = state.pop("module.model.fc2.bias")


SEVEN = {name: [value] * 7 for name, value in (("q01", -1.0), ("q99", 1.0))}
WRONG = {
    "missing shard": (remove("model-00002-of-00002.safetensors"), "lacks model-00002-of-00002.safetensors: 1 of the 2"),
    "no configuration": (remove("config.json"), "has no config.json"),
    "other architecture": (lambda r: r.change("config.json", model_type="qwen2_5_vl"), "'qwen2_5_vl', not openvla"),
    "other towers": (
        lambda r: r.change("config.json", timm_model_ids=["vit_large_patch14_clip_336.openai"]),
        "its vision towers are .*clip_336.*; only vit_large_patch14_reg4_dinov2.lvd142m with",
    ),
    "other picture size": (
        lambda r: r.change("config.json", image_sizes=[224, 224]),
        "the towers look at .28, 28. pixels",
    ),
    "other language model": (
        text_config(model_type="mistral"),
        "its language model is a 'mistral'; a llama was expected",
    ),
    "wider language model": (text_config(hidden_size=64), r"has language_model.*\[32\] where \[64\] fits"),
    "more layers": (text_config(num_hidden_layers=3), "lacks language_model.model.layers.2.input_layernorm.weight"),
    "fewer layers": (text_config(num_hidden_layers=1), "has language_model.model.layers.1.* which this model does not"),
    "senseless heads": (text_config(num_attention_heads=5), "its text_config is not valid"),
    "missing statistics": (remove("dataset_statistics.json"), "has no dataset_statistics.json, so its actions have no"),
    "statistics without numbers": (statistics(action={"q01": [0.0]}), "action has no q99, a list of numbers"),
    "statistics the wrong way": (statistics(action={"q01": [1.0], "q99": [0.0]}), "q01 of action is above q99"),
    "statistics of different lengths": (
        statistics(action={"q01": [0.0], "q99": [1.0, 1.0]}),
        "action differ in length",
    ),
    "no bounds of proprioception": (
        lambda r: r.write_json(
            "dataset_statistics.json",
            {"a": {"action": r.json("dataset_statistics.json")["libero_spatial_no_noops"]["action"]}},
        ),
        "proprio_projector--150000_checkpoint.pt reads proprioception, and dataset_statistics.json has no bounds",
    ),
    "mismatched head": (
        head(lambda s: s.update({"module.model.fc2.weight": torch.ones(14, 32)})),
        r"action_head.*has model.fc2.weight \[14, 32\] where \[7, 32\] fits. It is of another model or robot",
    ),
    "renamed key": (head(rename), "lacks model.fc2.bias; has model.other, which this model does not know"),
    "two heads": (add("action_head--50000_checkpoint.pt"), "action_head--150000.*, action_head--50000.* one of them"),
    "cut head": (
        lambda r: (r.path / HEAD).write_bytes((r.path / HEAD).read_bytes()[:900]),
        "complete file of torch.save",
    ),
    "other projector": (statistics(proprio=SEVEN), r"has fc1.weight \[32, 8\] where \[32, 7\] fits"),
    "FiLM": (add("vision_backbone--150000_checkpoint.pt"), "belongs to the variant FiLM .* take another release"),
    "diffusion": (add("noisy_action_projector--150000_checkpoint.pt"), "belongs to the variant diffusion"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer.json; copy it from the release"),
    "damaged tokenizer": (lambda r: (r.path / "tokenizer.json").write_text("{}"), "tokenizer.json is no tokenizer"),
    "no colours": (remove("preprocessor_config.json"), "has no preprocessor_config.json, by which pictures are"),
    "colours of one tower": (
        lambda r: r.write_json("preprocessor_config.json", {"means": [[0.5] * 3]}),
        "has no means of three colours for two towers",
    ),
    "unknown setting": (
        lambda r: r.write_json("worldenv.json", {"chunks": 8}),
        "worldenv.json .*does not know 'chunks'",
    ),
    "wrong setting": (lambda r: r.write_json("worldenv.json", {"chunk": 0}), "worldenv.json: chunk is 0; it should be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_folder_is_said(release, two_views, name):
    change, message = WRONG[name]
    change(release)
    with pytest.raises(UserError) as error:
        load_openvla_oft(release.path, two_views)
    said = str(error.value)
    assert re.search(message, said), said
    assert str(release.path) in said and "\n" not in said and len(said) < 600


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"views": ("agentview", "left")},
            "views has left, which libero_spatial does not show; it has agentview, wrist",
        ),
        ({"chunk": 80}, "chunk is 80; 560 numbers of it and 8 patches are more than the 512 positions"),
        ({"statistics": "libero_goal"}, "has no statistics of 'libero_goal'; it has libero_spatial_no_noops"),
        ({"layers": "encoder.*"}, "layers is 'encoder.*', which fits no linear layer; there are vision_backbone"),
        ({"base": "elsewhere"}, "has the whole weights, so it needs no `base`"),
        (
            {"conventions": OpenVLAConventions(proprio=(0,), proprio_factor=(1.0,))},
            "has 1 numbers, and the policy reads 8",
        ),
        (
            {"conventions": OpenVLAConventions(proprio=tuple(range(8)))},
            "names number 7, and the robot of libero_spatial has 7, counted from 0",
        ),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(written, two_views, config, message):
    with pytest.raises(UserError, match=message):
        inspect_policy(written["l1"].path, two_views, OpenVLAConfig(**config))


def test_a_policy_of_two_pictures_is_refused_where_there_is_one(written, one_view):
    with pytest.raises(UserError, match=r"look at two pictures, .*shows agentview alone: .*views=\('agentview',\)"):
        inspect_policy(written["l1"].path, one_view)


def test_the_scene_comes_before_the_wrist_whatever_the_suite_s_order(written, two_views, one_view):
    reversed_views = type(two_views)("wrist", "agentview")
    assert inspect_policy(written["l1"].path, reversed_views).views == ("agentview", "wrist")
    assert inspect_policy(written["tokens"].path, reversed_views).views == ("agentview",)
    assert inspect_policy(written["tokens"].path, type(two_views)("above", "near")).views == ("above",)


def test_a_robot_with_other_actions_is_refused(written):
    robot = Robot(("x",), ("dx", "dy"), (0.0,), (1.0,))
    suite = SimpleNamespace(name="pens", views=("above",), robot=robot)
    with pytest.raises(UserError, match="acts with 7 numbers, the robot of pens with 2"):
        inspect_policy(written["tokens"].path, suite)


def test_a_policy_of_which_nothing_would_learn_is_refused(written, one_view):
    with pytest.raises(UserError, match="lora is 0, and a policy of action tokens has no head that could learn"):
        inspect_policy(written["tokens"].path, one_view, OpenVLAConfig(lora=0))


def test_several_statistics_without_that_of_the_suite_are_listed(release, two_views):
    entry = release.json("dataset_statistics.json")["libero_spatial_no_noops"]
    release.write_json("dataset_statistics.json", {"bridge": entry, "fractal": entry})
    with pytest.raises(UserError, match="has no statistics of 'libero_spatial'; it has bridge, fractal: name one"):
        inspect_policy(release.path, two_views)
    assert inspect_policy(release.path, two_views, OpenVLAConfig(statistics="fractal")).bounds["proprio"].low[0] == -0.9


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "peft"])
def test_a_missing_package_is_named_with_its_extra(written, two_views, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'released models need {package}: pip install "worldenv\[models\]"'):
        inspect_policy(written["l1"].path, two_views)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk": 1.5}, "chunk is 1.5"),
        ({"views": ()}, "views is .*distinct names of cameras"),
        ({"views": ("a", "a")}, "views is .*distinct names of cameras"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"scale": 0.9}, "scale is 0.9; it should lie between scale_low, 0.02, and scale_high, 0.5"),
        ({"layers": "("}, r"layers is '\(', no regular expression"),
        ({"dtype": "int8"}, "dtype is 'int8'; it should be stored or float32 or bfloat16"),
        ({"conventions": {}}, "conventions is {}; it should be of type OpenVLAConventions"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        OpenVLAConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"orientation": "sideways"}, "orientation is 'sideways'; it should be upright or"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"resize": "nearest"}, "resize is 'nearest'; it should be lanczos or bicubic"),
        ({"stop": 1}, "stop is 1; it should be of type bool"),
        ({"gripper": (0.0, 1.0)}, "gripper is a factor of 0"),
        ({"proprio": (0, 1)}, "proprio has 2 numbers, proprio_factor 8"),
    ],
)
def test_a_convention_that_means_nothing_is_refused(values, message):
    with pytest.raises(FieldError, match=message):
        OpenVLAConventions(**values)
