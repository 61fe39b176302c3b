import json

import pytest
import torch
from safetensors import safe_open

from worldenv.records.checkpoint import CheckpointError
from worldenv.records.model_files import Models, load_model, save_model, shipped
from worldenv.worlds.causal.network import Causal, CausalConfig


@pytest.fixture
def made(tiny):
    return {"policy": tiny.policy(), "simulator": tiny.simulator(), "reflector": tiny.reflector()}


@pytest.fixture
def causal():
    return Causal(CausalConfig(image_size=16, width=32, layers=1, heads=2, key_heads=1, channels=4))


@pytest.mark.parametrize("kind", ["policy", "simulator", "reflector", "causal"])
def test_model_comes_back_to_half_precision_with_its_configuration(made, causal, tmp_path, kind):
    path, made = tmp_path / "model.safetensors", made | {"causal": causal}
    save_model(path, made[kind], {"seed": 3, "command": "make it"}, levels=(1.0, 0.5))
    back, metadata = load_model(path, kind)
    assert back.config == made[kind].config and not back.training
    assert metadata["made"] == {"seed": 3, "command": "make it"} and metadata["levels"] == [1.0, 0.5]
    for name, weight in made[kind].state_dict().items():
        assert torch.equal(back.state_dict()[name], weight.half().float()), name
        assert back.state_dict()[name].dtype == torch.float32
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_full_precision_comes_back_bit_by_bit(made, tmp_path, same_weights):
    save_model(tmp_path / "policy.safetensors", made["policy"], {}, torch.float32)
    assert same_weights(load_model(tmp_path / "policy.safetensors", "policy")[0], made["policy"])


def test_a_loaded_folder_acts_like_the_models_it_was_made_of(made, tiny, tmp_path):
    for kind, model in made.items():
        save_model(tmp_path / f"{kind}.safetensors", model, {}, levels=(1.0,))
    models, starts = Models.load(tmp_path), tiny.starts(3)
    assert models.levels == (1.0,) and not models.reflector.zero_shot
    assert Models.load(tmp_path, zero_shot=True).reflector.zero_shot
    with torch.no_grad():
        mine, loaded = (p(starts.frame, starts.proprio, starts.tokens)[0] for p in (made["policy"], models.policy))
    torch.testing.assert_close(loaded, mine, rtol=0.02, atol=2e-3)


def test_missing_model_is_named(made, tmp_path):
    save_model(tmp_path / "policy.safetensors", made["policy"], {})
    with pytest.raises(CheckpointError, match=r"simulator.safetensors: there is no such file"):
        Models.load(tmp_path)


def test_model_of_another_kind_is_refused(made, tmp_path):
    save_model(tmp_path / "x.safetensors", made["policy"], {})
    with pytest.raises(CheckpointError, match="x.safetensors holds a policy; a reflector was expected"):
        load_model(tmp_path / "x.safetensors", "reflector")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_model_is_refused(made, tmp_path, share):
    path = tmp_path / "x.safetensors"
    save_model(path, made["policy"], {})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="x.safetensors: not a complete safetensors file"):
        load_model(path, "policy")


def test_shipped_models_load_and_act(tiny):
    models = Models.load(shipped())
    starts = tiny.starts(2, models.simulator.config.image_size)
    with torch.no_grad():
        mu, _ = models.policy(starts.frame, starts.proprio, starts.tokens)
    assert (
        mu.shape == (2, models.policy.config.chunk, 7) and models.policy.config.chunk == models.simulator.config.chunk
    )
    files = [*shipped().glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 20e6
    for kind in ("policy", "simulator", "reflector"):
        _, metadata = load_model(shipped() / f"{kind}.safetensors", kind)
        assert metadata["made"] and json.dumps(metadata)
