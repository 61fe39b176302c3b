import json

import pytest
import torch
from safetensors.torch import save_file

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.policy.lora import inspect_adapter

RANK, ALPHA = 3, 6
LAYERS = {  # where an adapter of the authors' "all-linear" reaches, some of which is never used
    "vision_backbone.featurizer.patch_embed.proj": (32, 3, 14, 14),
    "vision_backbone.featurizer.blocks.0.attn.qkv": (96, 32),
    "vision_backbone.featurizer.blocks.2.mlp.fc1": (64, 32),  # of the last block
    "vision_backbone.fused_featurizer.attn_pool.q": (48, 48),
    "projector.fc2": (32, 320),
    "language_model.model.layers.1.mlp.down_proj": (32, 48),
    "language_model.lm_head": (32064, 32),
}


def key(count):
    return Key(3, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def write_adapter(folder, layers=LAYERS, **config):
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    tensors = {}
    for name, shape in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.3 * torch.randn(RANK, *shape[1:])
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.3 * torch.randn(shape[0], RANK, *[1] * len(shape[2:]))
    save_file(tensors, folder / "adapter_model.safetensors")
    names = sorted({name.rpartition(".")[2] for name in layers})
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names, "bias": "none"}
    plain |= {"base_model_name_or_path": "openvla/openvla-7b", "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return tensors


@pytest.fixture
def unmerged(release, tmp_path, written):
    """The folder of a run that was not merged: an adapter and heads. The model under it lies elsewhere."""
    for path in [*release.path.glob("*.safetensors*"), release.path / "config.json"]:
        path.unlink()
    tensors = write_adapter(release.path / "lora_adapter")
    return release, tensors


def merged_weights(written, tensors):
    """What the authors' script makes of the two, by hand."""
    out = written["l1"].tensors()
    for name in LAYERS:
        down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        delta = up.flatten(1) @ down.flatten(1) * ALPHA / RANK
        out[f"{name}.weight"] = out[f"{name}.weight"] + delta.view_as(out[f"{name}.weight"])
    return out


def test_an_adapter_is_merged_into_the_model_under_it(unmerged, written, load, moments, tmp_path):
    release, tensors = unmerged
    policy = load("l1", release.path, base=str(written["l1"].path))
    seen = moments(2, 2)
    read = policy.read(seen.texts)
    mean = policy.act(seen.seen, read, key(2), False).action
    for name, weight in merged_weights(written, tensors).items():
        if name.removesuffix(".weight") in dict(policy.network.named_modules()):
            part = policy.network.get_submodule(name.removesuffix(".weight"))
            torch.testing.assert_close(getattr(part, "base_layer", part).weight, weight, atol=1e-6, rtol=1e-6)
    plain = load("l1")
    assert (plain.act(seen.seen, read, key(2), False).action - mean).abs().max() > 1e-2
    assert not torch.equal(plain.frozen, policy.frozen)
    back = load("l1", policy.write_back(tmp_path / "back"))  # whole now
    torch.testing.assert_close(back.act(seen.seen, read, key(2), False).action, mean, atol=1e-5, rtol=0)


def test_the_model_under_an_adapter_must_be_named(unmerged, load):
    with pytest.raises(UserError, match="has an adapter and not the weights under it; .*calls it 'openvla/openvla-7b'"):
        load("l1", unmerged[0].path)


def test_the_model_may_be_named_in_the_folder(unmerged, written, load, two_views):
    from worldenv.policy.openvla_oft.policy import load_openvla_oft

    release, _ = unmerged
    release.write_json("worldenv.json", {"base": "../under", "lora": 2})
    (release.path.parent / "under").symlink_to(written["l1"].path)
    policy = load_openvla_oft(release.path, two_views)
    assert policy.config.lora == 2 and policy.found.release.folder == written["l1"].path


@pytest.mark.parametrize(
    ("layers", "config", "message"),
    [
        (
            {"language_model.model.layers.5.mlp.up_proj": (48, 32)},
            {},
            "has language_model.model.layers.5.mlp.up_proj, whi",
        ),
        ({"projector.fc2": (32, 8704)}, {}, r"fc2.lora_A.weight \[3, 8704\] where \[3, 320\] fits. Give the `base`"),
        ({"projector.fc2": (32, 320)}, {"use_dora": True}, "use_dora is True; only plain LoRA is read here"),
        ({"projector.fc2": (32, 320)}, {"peft_type": "VERA"}, "peft_type is 'VERA'; only plain LoRA"),
    ],
)
def test_an_adapter_of_another_model_or_kind_is_refused(tmp_path, written, layers, config, message):
    write_adapter(tmp_path / "lora_adapter", layers, **config)
    shapes = {key: tuple(t.shape) for key, t in written["l1"].tensors().items()}
    with pytest.raises(UserError, match=message):
        inspect_adapter(tmp_path / "lora_adapter", shapes)


def test_an_adapter_as_a_pickle_is_refused(tmp_path):
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="has no adapter_model.safetensors, but adapter_model.bin; save"):
        inspect_adapter(tmp_path, {})


def test_a_new_adapter_changes_nothing_at_first(load, moments):
    starts = moments(2, 2)
    policy, other = load("l1", lora=0), load("l1", lora=5)
    read = policy.read(starts.texts)
    assert torch.equal(*(p.act(starts.seen, read, key(2), True).action for p in (policy, other)))


@pytest.mark.parametrize("kind", ["l1", "tokens"])
def test_gradients_reach_every_adapted_parameter(load, moments, kind):
    policy = load(kind)
    names = {name for name, _ in policy.named_parameters() if "lora_" in name}
    assert len(names) == 2 * (2 * 4 + 1 * 4 + 3 + 2 * 7)  # two blocks, one block, projector, two layers
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or name == "scale_head.model.fc2.weight":  # 0 at first: what is before has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    starts = moments(4, len(policy.views))
    decision = policy.act(starts.seen, policy.read(starts.texts), key(4), True)
    policy.log_prob(decision.record, decision.action).sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert names <= reached
    learns = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learns == reached == policy.state_dict().keys() - {"frozen"}
    assert {id(p) for p in policy.trainable()} == {id(p) for p in policy.parameters() if p.requires_grad}


def test_adapters_go_where_the_expression_says(load):
    policy = load("l1", layers=r"language_model\.model\..*\.(q|v)_proj")
    adapted = {name.split(".lora_")[0] for name, _ in policy.named_parameters() if "lora_" in name}
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"} and len(adapted) == 4


def test_without_an_adapter_the_heads_alone_learn(load, moments):
    policy = load("l1", lora=0)
    learns = {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad}
    assert learns == {"action_head", "scale_head"}
    starts = moments(2, 2)
    decision = policy.act(starts.seen, policy.read(starts.texts), key(2), True)
    policy.log_prob(decision.record, decision.action).sum().backward()
    assert all(p.grad is not None for p in policy.trainable())
