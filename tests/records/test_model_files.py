import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.records.model_files import load_model, load_ranges, save_model, save_ranges, shipped
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork

SHIPPED = shipped(), shipped().parent / "libero_object"  # whole sets of models
PASSES = {"tabletop": 1, "libero_object": 2}  # of the composer, in a chunk of the policy
CLASSES = {
    "policy": (SmallPolicy, SmallPolicyConfig),
    "composer": (ComposerNetwork, ComposerConfig),
    "reflector": (SmallReflector, SmallReflectorConfig),
    "causal": (CausalNetwork, CausalConfig),
}


@pytest.fixture
def made(tiny):
    causal = CausalNetwork(CausalConfig(image_size=16, width=32, layers=1, heads=2, key_heads=1, channels=4))
    return {"policy": tiny.policy(), "composer": tiny.simulator(), "reflector": tiny.reflector(), "causal": causal}


@pytest.mark.parametrize("kind", CLASSES)
def test_model_comes_back_to_half_precision_with_its_configuration(made, tmp_path, kind):
    path = tmp_path / "model.safetensors"
    save_model(path, made[kind], kind, {"seed": 3, "command": "make it"}, levels=(1.0, 0.5))
    back, metadata = load_model(path, kind, *CLASSES[kind])
    assert back.config == made[kind].config and not back.training and metadata["kind"] == kind
    assert metadata["made"] == {"seed": 3, "command": "make it"} and metadata["levels"] == [1.0, 0.5]
    for name, weight in made[kind].state_dict().items():
        assert torch.equal(back.state_dict()[name], weight.half().float()), name
        assert back.state_dict()[name].dtype == torch.float32
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_full_precision_comes_back_bit_by_bit(made, tmp_path, same_weights):
    save_model(tmp_path / "policy.safetensors", made["policy"], "policy", {}, torch.float32)
    back, _ = load_model(tmp_path / "policy.safetensors", "policy", *CLASSES["policy"])
    assert same_weights(back, made["policy"])


def test_model_of_another_version_is_refused_with_what_to_do(made, tmp_path):
    path, before = tmp_path / "composer.safetensors", made["composer"]
    before.contact.mask = before.contact.masks  # another name
    del before.contact.masks
    save_model(path, before, "composer", {})
    with pytest.raises(
        CheckpointError, match="missing in the file: contact.masks.bias, .* another version of worldenv"
    ):
        load_model(path, "composer", *CLASSES["composer"])


def test_options_of_a_network_are_given_when_it_is_rebuilt(made, tmp_path):
    save_model(tmp_path / "x.safetensors", made["reflector"], "reflector", {})
    for zero_shot in (False, True):
        back, _ = load_model(tmp_path / "x.safetensors", "reflector", *CLASSES["reflector"], zero_shot=zero_shot)
        assert back.zero_shot == zero_shot


def test_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"composer.safetensors: there is no such file"):
        load_model(tmp_path / "composer.safetensors", "composer", *CLASSES["composer"])


def test_model_of_another_kind_is_refused(made, tmp_path):
    save_model(tmp_path / "x.safetensors", made["policy"], "policy", {})
    with pytest.raises(CheckpointError, match="x.safetensors holds a policy; a reflector was expected"):
        load_model(tmp_path / "x.safetensors", "reflector", *CLASSES["reflector"])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_model_is_refused(made, tmp_path, share):
    path = tmp_path / "x.safetensors"
    save_model(path, made["policy"], "policy", {})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="x.safetensors: not a complete safetensors file"):
        load_model(path, "policy", *CLASSES["policy"])


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_models_are_small_and_say_how_they_were_made(folder):
    files = [*folder.glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 20e6
    for file in files:
        _, metadata = load_weights(file)
        assert metadata["made"] and json.dumps(metadata)
    kinds = {kind: kind for kind in ("policy", "composer", "reflector")}
    kinds |= {"finetuned": "policy"} if folder == shipped() else {}
    networks = {
        name: load_model(folder / f"{name}.safetensors", kind, *CLASSES[kind])[0] for name, kind in kinds.items()
    }
    assert networks["policy"].config.chunk == PASSES[folder.name] * networks["composer"].config.chunk


def rewritten(path, edit):
    weights, metadata = load_weights(path)
    edit(metadata, weights)
    save_weights(path, weights, metadata)


@pytest.mark.parametrize(
    ("kind", "field", "value", "why"),
    [
        ("policy", "blocks", 10**9, "blocks is 1000000000; no size of its weights is greater"),
        ("policy", "width", 10**400, "width is 1000"),
        ("policy", "chunk", 4.0, "chunk is '4.0'; it should be like 4"),
        ("policy", "chunk", True, "chunk is 'True'; it should be like 4"),
        ("policy", "scale_low", 0.05, "scale_low is '0.05'"),
        ("policy", "scale_high", math.nan, "scale_high is 'nan'"),
        ("policy", "zzz", 3, "unknown field 'zzz' — valid names: blocks, channels"),
        ("reflector", "threshold", 1.5, "threshold is 1.5; it should be a number above 0.0 and below 1.0"),
        ("reflector", "channels", 12, "a reflector: "),
        ("composer", "widths", [8, 16], "a composer: "),
        ("composer", "exact", "no", "exact is 'no'; it should be like False"),
        ("composer", "heads", 0, "a composer: "),
        ("composer", "heads", -1, "heads is -1; it should be a whole number from 1"),
        ("causal", "image_size", 10**6, "image_size is 1000000; no size of its weights is greater"),
        ("causal", "cache", "int4", "cache is 'int4'"),
    ],
)
def test_configuration_that_the_weights_do_not_have_is_refused_in_one_line(made, tmp_path, kind, field, value, why):
    path = tmp_path / "x.safetensors"
    save_model(path, made[kind], kind, {})
    rewritten(path, lambda metadata, _: metadata["config"].update({field: value}))
    with pytest.raises(CheckpointError, match="(?s)x.safetensors: its configuration is not valid for a.*") as caught:
        load_model(path, kind, *CLASSES[kind])
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_model_without_a_configuration_is_refused(made, tmp_path):
    path = tmp_path / "x.safetensors"
    save_model(path, made["policy"], "policy", {})
    rewritten(path, lambda metadata, _: metadata.update(config=[1]))
    with pytest.raises(CheckpointError, match=r"x.safetensors: .* it has no configuration, but '\[1\]'"):
        load_model(path, "policy", *CLASSES["policy"])


class Taken(TorchFunctionMode):
    """Counts the numbers for which memory is taken."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numbers += out.numel() if function is torch.empty else 0
        return out


def test_configuration_takes_no_memory_before_the_weights_are_seen_to_fit(made, tmp_path):
    path = tmp_path / "x.safetensors"
    save_model(path, made["policy"], "policy", {})
    rewritten(path, lambda metadata, _: metadata["config"].update(width=1024, channels=1024, blocks=64))
    with pytest.raises(CheckpointError, match="for a policy: it has many more weights than the file"):
        with Taken() as taken:  # 2.4 GB, were it built
            load_model(path, "policy", *CLASSES["policy"])
    assert taken.numbers < 3e6
    with Taken() as taken:
        SmallPolicy(made["policy"].config)
    assert taken.numbers == sum(parameter.numel() for parameter in made["policy"].parameters())


def test_loading_draws_the_random_numbers_that_building_draws(made, tmp_path):
    save_model(tmp_path / "x.safetensors", made["policy"], "policy", {})
    torch.manual_seed(0)
    SmallPolicy(made["policy"].config)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_model(tmp_path / "x.safetensors", "policy", *CLASSES["policy"])
    assert torch.equal(torch.rand(3), expected)


def test_loading_imports_no_compiler():  # which takes seconds
    code = (
        "import sys, worldenv; worldenv.load(); "
        "assert not [name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))]"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# Ranges.

LAYERS = {"stem": (-1.0, 2.0), "see": None}


@pytest.fixture
def ranged(tmp_path):
    path, networks = tmp_path / "ranges.json", {role: torch.nn.Linear(2, 2) for role in ("policy", "world")}
    save_ranges(path, dict.fromkeys(networks, LAYERS), networks)
    return path, networks


def test_ranges_come_back_with_their_networks_alone(ranged):
    path, networks = ranged
    assert load_ranges(path, networks) == {"policy": LAYERS, "world": LAYERS}
    del networks["world"]
    assert load_ranges(path, networks) == {"policy": LAYERS}
    assert load_ranges(shipped() / "ranges.json", {}) == {}


def test_ranges_of_other_weights_are_refused(ranged):
    path, networks = ranged
    with torch.no_grad():
        networks["world"].bias[1] += 1e-6
    with pytest.raises(CheckpointError, match="ranges.json is damaged, or was measured with other weights of the worl"):
        load_ranges(path, networks)


def test_ranges_of_an_older_version_have_no_checksum_and_are_read(ranged):
    path, networks = ranged
    path.write_text(json.dumps({"policy": {"a": [0, 1]}, "world": {}}))
    assert load_ranges(path, networks) == {"policy": {"a": (0, 1)}, "world": {}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read: Expecting value"),
        ("[" * 100_000, "cannot be read: maximum recursion"),
        ("[]", "is no JSON object"),
        ('{"teacher": {}}', "has 'teacher'; it should have policy, world, reflector"),
        ('{"policy": {}}', "has no ranges of the world"),
        ('{"policy": [], "world": {}}', "has no ranges of the policy"),
        ('{"policy": {"a": [1, -1]}, "world": {}}', r"the range of 'a' is \[1, -1\]; it should be null or"),
        ('{"policy": {"a": [NaN, 1]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": [0, Infinity]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": [0, 1e60]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": ["0", "1"]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": [false, true]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": [0, 1, 2]}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": 3}, "world": {}}', "the range of 'a' is"),
        ('{"policy": {"a": [0, 1]}, "world": {}, "sha256": 3}', "is damaged, or was measured"),
    ],
)
def test_ranges_that_are_none_are_refused_by_the_name_of_the_file(ranged, text, why):
    path, networks = ranged
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"ranges.json.*{why}") as caught:
        load_ranges(path, networks)
    assert "\n" not in str(caught.value) and "delete it: then imagination is in float32" in str(caught.value)


def test_ranges_that_are_a_pipe_are_refused(ranged):
    path, networks = ranged
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="ranges.json: not a file"):
        load_ranges(path, networks)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_files_have_a_checksum(folder):
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert len(json.loads(file.metadata()["worldenv"])["sha256"]) == 64
    assert set(json.loads((folder / "ranges.json").read_text())["sha256"]) == {"policy", "world", "reflector"}
