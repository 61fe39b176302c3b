"""The network against torch's and transformers' own layers on the same weights, as the authors' code calls them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldenv.interfaces.observation import Key
from worldenv.policy.openvla_oft.config import OpenVLAConventions
from worldenv.policy.openvla_oft.pictures import prepared


def key(count: int) -> Key:
    return Key(3, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def tower(weights: dict[str, torch.Tensor], prefix: str, pixels: torch.Tensor) -> torch.Tensor:
    """A vision tower made of torch's own encoder layers; a layer scale is multiplied into the weights before it."""
    w = {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}
    width = w["pos_embed"].shape[2]
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14).flatten(2)
    x = x.transpose(1, 2) + w["pos_embed"]
    first = [w[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in w]
    x, blocks = torch.cat([*first, x], dim=1), 1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks."))
    for i in range(blocks - 1):  # all but the last
        b = {k.removeprefix(f"blocks.{i}."): t for k, t in w.items() if k.startswith(f"blocks.{i}.")}
        one = torch.ones(width)
        scale1, scale2 = (b.get(f"ls{n}.scale_factor", one) for n in (1, 2))
        layer = nn.TransformerEncoderLayer(
            width, 16, len(b["mlp.fc1.bias"]), 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True
        )
        state = {
            "self_attn.in_proj_weight": b["attn.qkv.weight"],
            "self_attn.in_proj_bias": b["attn.qkv.bias"],
            "self_attn.out_proj.weight": b["attn.proj.weight"] * scale1[:, None],
            "self_attn.out_proj.bias": b["attn.proj.bias"] * scale1,
            "linear1.weight": b["mlp.fc1.weight"],
            "linear1.bias": b["mlp.fc1.bias"],
            "linear2.weight": b["mlp.fc2.weight"] * scale2[:, None],
            "linear2.bias": b["mlp.fc2.bias"] * scale2,
        } | {k: b[k] for k in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        layer.load_state_dict(state)
        x = layer(x)
    return x[:, len(first) and 1 + w["reg_token"].shape[1] :]


def mlp(weights: dict[str, torch.Tensor], prefix: str, layers: int, x: torch.Tensor) -> torch.Tensor:
    for i in range(1, layers + 1):
        x = F.linear(F.gelu(x) if i > 1 else x, weights[f"{prefix}fc{i}.weight"], weights[f"{prefix}fc{i}.bias"])
    return x


def head_of(release) -> dict[str, torch.Tensor]:
    return torch.load(release.path / "action_head--150000_checkpoint.pt", weights_only=True)


def l1_head(w: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:  # [56, D] -> [8, 7]
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    x = linear(norm(hidden.reshape(8, -1), "module.model.layer_norm1"), "module.model.fc1").relu()
    for i in range(2):
        block = f"module.model.mlp_resnet_blocks.{i}.ffn"
        x = x + linear(norm(x, f"{block}.0"), f"{block}.1").relu()
    return linear(norm(x, "module.model.layer_norm2"), "module.model.fc2")


class Authors:
    """One episode at a time: no padding, all visible to all, states from the patches and the prompt on."""

    def __init__(self, release, policy):
        from transformers import LlamaForCausalLM

        self.weights, self.release, self.policy = release.tensors(), release, policy
        config = type(policy.network.language_model.config)(
            **{k: v for k, v in release.json("config.json")["text_config"].items() if k != "torch_dtype"},
            attn_implementation="eager",
        )
        self.llama = LlamaForCausalLM(config).eval()
        inner = "language_model."
        self.llama.load_state_dict(
            {k.removeprefix(inner): t for k, t in self.weights.items() if k.startswith(inner)}, strict=True
        )

    def __call__(
        self, seen, row: int, text: str, causal: bool = False, stop: bool = True
    ):  # states [56, D], logits [56, vocabulary]
        policy = self.policy
        pixels = prepared(
            seen.frames[row : row + 1], policy.found.size, policy.config.conventions, policy.mean, policy.std
        )[0]
        towers = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
        patches = [tower(self.weights, name, pixels[:, i]) for i, name in enumerate(towers)]
        see = mlp(self.weights, "projector.", 3, torch.cat(patches, -1)).flatten(0, 1)[None]
        if policy.proprio_projector is not None:
            path = self.release.path / "proprio_projector--150000_checkpoint.pt"
            projector = torch.load(path, weights_only=True)
            theirs = policy.units.proprio(seen.proprio[row : row + 1])
            see = torch.cat([see, mlp(projector, "module.", 2, theirs)[:, None]], dim=1)
        ids = torch.tensor([[*policy.prompt.ids(text), *[1] * 56, 2]])
        embedded = self.llama.get_input_embeddings()(ids)
        embedded[:, -57:-1] = 0
        x = torch.cat([embedded[:, :1], see, embedded[:, 1 : None if stop else -1]], dim=1)
        size = x.shape[1]
        mask = torch.zeros(1, 1, size, size)
        if causal:
            mask = torch.full((size, size), -torch.inf).triu(1)[None, None]
        out = self.llama(inputs_embeds=x, attention_mask=mask, use_cache=False, output_hidden_states=True)
        prompt = ids.shape[1] - 58
        first = see.shape[1] + prompt
        return out.hidden_states[-1][0, first : first + 56], out.logits[0, first : first + 56]


@torch.no_grad()
def test_towers_are_torch_s_own_layers(load, written):
    towers, weights = load("tokens").network.vision_backbone, written["tokens"].tensors()
    pixels = torch.randn(3, 3, 28, 28)
    for name in ("featurizer", "fused_featurizer"):
        expected = tower(weights, f"vision_backbone.{name}.", pixels)
        assert expected.shape == (3, 4, {"featurizer": 32, "fused_featurizer": 48}[name])
        torch.testing.assert_close(towers[name](pixels), expected, atol=1e-4, rtol=1e-5)


TEXTS = ["put the red block on the green pad", "slide the puck", "put the red block on the green pad"]


def seen_by(policy, moments):
    starts = moments(3, len(policy.views))
    starts.seen.text = torch.tensor([0, 1, 0])
    return starts.seen, policy.read(TEXTS[:2])


@pytest.mark.parametrize("kind", ["l1", "l1, one view"])
@torch.no_grad()
def test_l1_actions_are_those_of_the_libraries_own_layers(load, written, moments, kind):
    policy, release = load(kind), written["l1"]
    authors, head = Authors(release, policy), head_of(release)
    seen, read = seen_by(policy, moments)
    mean = policy.act(seen, read, key(3), False).action
    factor, offset = policy.units.factor, policy.units.offset
    for row, text in enumerate(TEXTS):
        expected = l1_head(head, authors(seen, row, text)[0]) * factor + offset
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(mean[row], expected, atol=1e-4, rtol=0)
    causal = l1_head(head, authors(seen, 0, TEXTS[0], causal=True)[0]) * factor + offset
    assert (mean[0] - causal).abs().max() > 1e-2  # the difference that the test can see


@torch.no_grad()
def test_a_sequence_may_end_without_the_stop_token(load, written, moments):
    policy = load("tokens", temperature=1.0, conventions=OpenVLAConventions(stop=False))
    seen, read = seen_by(policy, moments)
    likely = policy._log_probs(policy.moment(seen, read))
    for row, text in enumerate(TEXTS):
        logits = Authors(written["tokens"], policy)(seen, row, text, stop=False)[1][:, 31744:32000]
        torch.testing.assert_close(likely[row], torch.log_softmax(logits, -1), atol=1e-4, rtol=0)
    assert (load("tokens", temperature=1.0)._log_probs(policy.moment(seen, read)) - likely).abs().max() > 1e-2


@torch.no_grad()
def test_token_probabilities_are_those_of_the_libraries_own_layers(load, written, moments):
    policy = load("tokens", temperature=0.7)
    authors = Authors(written["tokens"], policy)
    seen, read = seen_by(policy, moments)
    decision = policy.act(seen, read, key(3), True)
    greedy = policy.act(seen, read, key(3), False)
    for row, text in enumerate(TEXTS):
        logits = authors(seen, row, text)[1][:, 31744:32000]
        expected = torch.log_softmax(logits / 0.7, dim=-1)
        bins = decision.record.bins[row]
        assert decision.log_prob[row].item() == pytest.approx(expected[range(56), bins].sum().item(), abs=1e-3)
        assert torch.equal(greedy.record.bins[row], logits.argmax(-1))
        normalised = policy.middles[bins].view(8, 7)
        torch.testing.assert_close(decision.action[row], normalised * policy.units.factor + policy.units.offset)


@pytest.mark.parametrize("kind", ["l1", "tokens"])
def test_an_episode_is_the_same_alone_and_beside_longer_prompts(load, moments, kind):
    policy = load(kind)
    seen, read = seen_by(policy, moments)
    together = policy.act(seen, read, key(3), True)
    alone = seen[1:2].each(torch.clone)
    alone.text[:] = 0
    one = Key(3, torch.tensor([1]), torch.tensor([0]))
    single = policy.act(alone, policy.read(TEXTS[1:2]), one, True)
    torch.testing.assert_close(single.action[0], together.action[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(single.log_prob[0], together.log_prob[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["l1", "l1, one view", "tokens"])
def test_log_probability_comes_again_from_the_record(load, moments, kind):
    policy = load(kind)
    seen, read = seen_by(policy, moments)
    decision = policy.act(seen, read, key(3), True)
    again = policy.log_prob(decision.record, decision.action)
    torch.testing.assert_close(again, decision.log_prob, atol=1e-3, rtol=0)
    assert again.requires_grad and not decision.action.requires_grad
    if kind != "tokens":
        other = policy.log_prob(decision.record, decision.action + 0.1)
        assert (other - again).abs().min() > 0.1


def test_tokens_are_drawn_as_often_as_they_are_likely(load, moments):
    policy = load("tokens", chunk=1, temperature=0.3)
    starts = moments(1)
    many = starts.seen.each(lambda tensor: tensor.expand(400, *tensor.shape[1:]))
    read = policy.read(starts.texts)
    drawn = policy.act(many, read, key(400), True).record.bins
    likely = policy._log_probs(policy.moment(starts.seen, read)).exp()[0].detach()
    for number in range(7):
        counts = torch.bincount(drawn[:, number], minlength=256)
        expected = 400 * likely[number]
        spread = ((counts - expected).square() / expected.clamp(min=1)).sum()
        assert spread < 500  # chi-square of at most 255 degrees of freedom: 500 is never reached
    assert torch.equal(drawn, policy.act(many, read, key(400), True).record.bins)


def test_every_input_moves_the_action(load, moments):
    policy = load("l1")
    seen, read = seen_by(policy, moments)

    def acted(**changed):
        other = seen.each(torch.clone)
        for name, value in changed.items():
            setattr(other, name, value)
        return policy.act(other, read, key(3), False).action

    base = acted()
    second = seen.frames.clone()
    second[:, 1] = 255 - second[:, 1]
    for changed in ({"frames": second}, {"proprio": seen.proprio + 0.05}, {"text": 1 - seen.text}):
        assert (acted(**changed) - base).abs().amax((1, 2)).min() > 1e-3


def test_bfloat16_networks_act_and_what_learns_is_float32(load, moments):
    policy = load("l1", dtype="bfloat16")
    exact = load("l1")
    seen, read = seen_by(policy, moments)
    assert policy.network.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
    rounded, mean = (p.act(seen, read, key(3), False).action for p in (policy, exact))
    assert rounded.dtype == torch.float32 and 0 < (rounded - mean).abs().max() < 0.5


@pytest.mark.parametrize("kind", ["l1", "tokens"])
def test_towers_and_language_model_are_compiled_by_one_switch_and_act_the_same(load, moments, kind, request):
    plain = load(kind)
    made = request.getfixturevalue("compiling")
    policy = load(kind)
    network, called, actions = policy.network, set(), []
    assert made == [network.language_model.model, *network.vision_backbone.values()] and len(made) == 3
    for one in made:
        one.register_forward_hook(lambda own, *_: called.add(own))
    starts = moments(2, len(policy.views))
    for one in (policy, plain):
        actions.append(one.act(starts.seen, one.read(["put the red block on the green pad"] * 2), key(2), True).action)
    assert called == set(made)
    torch.testing.assert_close(*actions, rtol=1e-5, atol=1e-5)
