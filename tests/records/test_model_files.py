import json

import pytest
import torch
from safetensors import safe_open

from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.checkpoint import CheckpointError, load_weights
from worldenv.records.model_files import load_model, save_model, shipped
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork

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


def test_shipped_models_are_small_and_say_how_they_were_made():
    files = [*shipped().glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 20e6
    for file in files:
        _, metadata = load_weights(file)
        assert metadata["made"] and json.dumps(metadata)
    kinds = {"finetuned": "policy", **{kind: kind for kind in ("policy", "composer", "reflector")}}
    networks = {
        name: load_model(shipped() / f"{name}.safetensors", kind, *CLASSES[kind])[0] for name, kind in kinds.items()
    }
    assert networks["policy"].config.chunk == networks["composer"].config.chunk
