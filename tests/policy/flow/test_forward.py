"""The networks against transformers' own on the same weights, called as their libraries call them."""

import math

import pytest
import torch
import transformers
from torch.nn import functional as F

from worldenv.interfaces.observation import Key
from worldenv.policy.flow.pictures import prepared

KINDS = ["pi0", "smolvla"]
TEXTS = ["put the red block on the green pad", "slide the puck", "put the red block on the green pad"]


def seen_by(policy, moments):
    starts, key = moments(3, len(policy.views))
    starts.seen.text = torch.tensor([0, 1, 0])
    return starts.seen, policy.read(TEXTS[:2]), key


def inputs(policy, seen, key, row):
    """Pictures, state and noise of one episode."""
    pixels = prepared(seen.frames[row : row + 1], policy.found.architecture.size, policy.config.conventions)
    state = policy.units.state(seen.proprio[row : row + 1])
    return pixels, F.pad(state, (0, policy.network.state_numbers - state.shape[1])), policy.noise(key)[row : row + 1]


@pytest.mark.parametrize("cameras", [1, 2])
@torch.no_grad()
def test_pi0_acts_as_transformers_own_sampler(load, moments, tmp_path, written, cameras):
    """The library reads the same folder by its own conversion of names, and samples by its own loop."""
    policy = load("pi0", cameras=cameras)
    seen, read, key = seen_by(policy, moments)
    ours = policy.act(seen, read, key, False).action
    config = policy.network.net.config
    theirs = transformers.PI0ForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path / "theirs")  # for its configuration
    weights = written[f"pi0{cameras}"].path / "model.safetensors"
    (tmp_path / "theirs" / "model.safetensors").write_bytes(weights.read_bytes())
    made, said = transformers.PI0ForConditionalGeneration.from_pretrained(
        tmp_path / "theirs", local_files_only=True, output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"]
    for row, text in enumerate(TEXTS):
        pixels, state, noise = inputs(policy, seen, key, row)
        ids = torch.tensor([[*[64] * 4 * cameras, *policy.prompt.ids(text)]])
        given = {
            "attention_mask": torch.ones_like(ids),
            "pixel_attention_mask": torch.ones(1, cameras, dtype=torch.bool),
        }
        actions = made.eval().sample_actions(state, ids, pixels, noise, **given)
        expected = policy.units.action(actions[:, :4, :7])[0]
        assert (expected - policy.units.offset).abs().max() > 0.1
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=0)


class Authors:
    """One episode of SmolVLA: the prefix by transformers' language model, whose keys and values it caches itself."""

    def __init__(self, release, policy):
        weights = {k.removeprefix("model."): t for k, t in release.tensors().items()}
        joint = "vlm_with_expert.vlm.model."
        own = policy.network.vlm_with_expert.vlm.model.config
        own.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}  # not that of its file
        self.vlm = transformers.SmolVLMModel(own).float().eval()
        self.vlm.load_state_dict({k.removeprefix(joint): t for k, t in weights.items() if k.startswith(joint)})
        self.expert, self.weights = policy.network.vlm_with_expert.lm_expert, weights
        self.rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(own.text_config)
        self.turn = transformers.models.llama.modeling_llama.apply_rotary_pos_emb

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def prefix(self, pixels, ids, state):
        seen = self.vlm.get_image_features(pixels).pooler_output
        seen = torch.cat(list(seen))[None] * math.sqrt(32)
        said = self.vlm.text_model.embed_tokens(torch.tensor([ids])) * math.sqrt(32)
        x = torch.cat([seen, said, self.linear("state_proj", state)[:, None]], dim=1)
        mask = torch.zeros(1, 1, x.shape[1], x.shape[1])
        mask[..., :-1, -1] = -torch.inf  # nothing sees the state but itself
        cache = transformers.DynamicCache(config=self.vlm.config.text_config)
        name = "cache" if "cache" in transformers.LlamaModel.forward.__code__.co_varnames else "past_key_values"
        self.vlm.text_model(inputs_embeds=x, attention_mask=mask, use_cache=True, **{name: cache})
        return [(layer.keys, layer.values) for layer in cache.layers]  # [1, heads, L, size]

    def velocity(self, cache, x, time):
        share = torch.linspace(0, 1, 12, dtype=torch.float64)
        angle = 2 * math.pi * time / (4e-3 * 1000**share)
        when = torch.cat([angle.sin(), angle.cos()]).float()[None, None].expand(1, x.shape[1], -1)
        h = torch.cat([self.linear("action_in_proj", x), when], dim=2)
        h = self.linear("action_time_mlp_out", F.silu(self.linear("action_time_mlp_in", h)))
        k, past = x.shape[1], cache[0][0].shape[2]
        for i, (keys, values) in enumerate(cache):
            name, layer = f"vlm_with_expert.lm_expert.layers.{i}", self.expert.layers[i]
            n = layer.input_layernorm(h)
            split = lambda y: y.view(1, y.shape[1], -1, 8).transpose(1, 2)  # noqa: E731
            query = split(self.linear(f"{name}.self_attn.q_proj", n))
            crossed = i % 2 == 1
            source = (keys, values) if crossed else (n, n)
            if crossed:
                source = tuple(y.transpose(1, 2).flatten(2) for y in source)
            key, value = (
                split(self.linear(f"{name}.self_attn.{part}_proj", y)) for part, y in zip("kv", source, strict=True)
            )
            cos, sin = self.rotary(n, torch.arange(k)[None] + (0 if crossed else past))
            query, turned = self.turn(query, query if crossed else key, cos, sin)
            mask = torch.zeros(k, past if crossed else past + k)
            if not crossed:
                mask[:, past:] = torch.full((k, k), -torch.inf).triu(1)
                key, value = torch.cat([keys, turned], dim=2), torch.cat([values, value], dim=2)
            key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
            likely = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(8) + mask, dim=-1)
            h = h + self.linear(f"{name}.self_attn.o_proj", (likely @ value).transpose(1, 2).flatten(2))
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        return self.linear("action_out_proj", self.expert.norm(h))


@pytest.mark.parametrize("cameras", [1, 2])
@torch.no_grad()
def test_smolvla_acts_as_the_libraries_own_layers(load, moments, written, cameras):
    policy = load("smolvla", cameras=cameras, lora=0)
    seen, read, key = seen_by(policy, moments)
    ours = policy.act(seen, read, key, False).action
    authors = Authors(written[f"smolvla{cameras}"], policy)
    for row, text in enumerate(TEXTS):
        pixels, state, x = inputs(policy, seen, key, row)
        cache = authors.prefix(pixels, policy.prompt.ids(text), state)
        for step in range(3):
            x = x - authors.velocity(cache, x, 1 - step / 3) / 3
        expected = policy.units.action(x[:, :4, :7])[0]
        assert (expected - policy.units.offset).abs().max() > 0.1
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("exploration", ["laplace", "sde"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_is_the_same_alone_and_beside_longer_prompts(load, moments, kind, exploration):
    policy = load(kind, exploration=exploration)
    seen, read, key = seen_by(policy, moments)
    together = policy.act(seen, read, key, True)
    alone = seen[1:2].each(torch.clone)
    alone.text[:] = 0
    one = Key(key.seed, key.episode[1:2], key.chunk[1:2])
    single = policy.act(alone, policy.read(TEXTS[1:2]), one, True)
    torch.testing.assert_close(single.action[0], together.action[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(single.log_prob[0], together.log_prob[1], atol=1e-2, rtol=0)
    other = policy.act(seen, read, Key(key.seed, key.episode, key.chunk + 1), False)
    assert (other.action - policy.act(seen, read, key, False).action).abs().amax((1, 2)).min() > 1e-2  # other noise


@pytest.mark.parametrize("exploration", ["laplace", "sde"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_probability_comes_again_from_the_record(load, moments, kind, exploration):
    policy = load(kind, exploration=exploration)
    seen, read, key = seen_by(policy, moments)
    decision = policy.act(seen, read, key, True)
    again = policy.log_prob(decision.record, decision.action)
    torch.testing.assert_close(again, decision.log_prob, atol=1e-2, rtol=0)
    assert again.requires_grad and not decision.action.requires_grad
    noise = policy.noise(key)
    floats = [tensor for tensor in decision.record.tensors() if tensor.is_floating_point()]
    assert not any(tensor.shape == noise.shape and torch.equal(tensor, noise) for tensor in floats)
    assert torch.equal(policy.noise_again(decision.record), noise)


def test_noise_of_several_seeds_is_made_again_row_by_row(load, moments):
    policy = load("pi0")
    starts, _ = moments(2)
    read = policy.read(starts.texts)
    keys = [Key(seed, torch.tensor([4, 5]), torch.tensor([1, 2])) for seed in (7, -8)]
    records = [policy.act(starts.seen, read, key, True).record for key in keys]
    mixed = type(records[0])(*(torch.cat(pair) for pair in zip(*(r.tensors() for r in records), strict=True)))
    expected = torch.cat([policy.noise(key) for key in keys])
    assert torch.equal(policy.noise_again(mixed), expected) and expected.std() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_moves_the_action(load, moments, kind):
    policy = load(kind, cameras=2)
    seen, read, key = seen_by(policy, moments)

    def acted(**changed):
        other = seen.each(torch.clone)
        for name, value in changed.items():
            setattr(other, name, value)
        return policy.act(other, read, key, False).action

    base, second = acted(), seen.frames.clone()
    second[:, 1] = 255 - second[:, 1]
    for changed in ({"frames": second}, {"proprio": seen.proprio + 0.3}, {"text": 1 - seen.text}):
        assert (acted(**changed) - base).abs().amax((1, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_adapted_parameter(load, moments, kind):
    policy = load(kind, layers=".*")  # the language model's and the tower's, too
    names = {name for name, _ in policy.named_parameters() if "lora_" in name}
    assert any("vision" in name for name in names) and any("layers.0.mlp" in name for name in names)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or name == "scale_head.outer.weight":  # 0 at first: what is before has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    seen, read, key = seen_by(policy, moments)
    decision = policy.act(seen, read, key, True)
    policy.log_prob(decision.record, decision.action).sum().backward()
    reached = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    learns = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert names <= learns == reached == policy.state_dict().keys() - {"frozen"}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_go_to_the_expert_unless_others_are_named(load, kind):
    learns = {name for name, p in load(kind).named_parameters() if p.requires_grad}
    expert = ("lm_expert", ".dit.", "action", "scale_head")
    assert all(any(part in name for part in expert) for name in learns) and len(learns) > 20
    heads = {name for name, p in load(kind, lora=0).named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in heads} == {
        "action_out_proj",
        "norm",
        "inner",
        "outer",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_networks_act_and_what_learns_is_float32(load, moments, kind):
    policy, exact = load(kind, dtype="bfloat16"), load(kind)
    seen, read, key = seen_by(policy, moments)
    assert {p.dtype for p in policy.network.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
    rounded, mean = (p.act(seen, read, key, False).action for p in (policy, exact))
    assert rounded.dtype == torch.float32 and 0 < (rounded - mean).abs().max() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_compiled_by_one_switch_and_compute_the_same(load, moments, kind, request):
    plain = load(kind)
    made = request.getfixturevalue("compiling")
    policy = load(kind)
    assert made == policy.network.to_compile() and len(made) == {"pi0": 3, "smolvla": 7}[kind]
    called, actions, gradients = set(), [], []
    for network in made:
        network.register_forward_hook(lambda own, *_: called.add(own))
    for one in (policy, plain):
        decision = one.act(*seen_by(one, moments), True)
        one.log_prob(decision.record, decision.action).sum().backward()
        actions.append(decision.action)
        gradients.append([p.grad for p in one.parameters() if p.grad is not None])
    unread = 1 if kind == "smolvla" else 0  # nothing reads the MLP of the last language layer
    assert len(called) == len(made) - unread and gradients[0]
    torch.testing.assert_close(*actions, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
