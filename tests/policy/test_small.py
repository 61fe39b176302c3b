import pytest
import torch

from worldenv.errors import UserError
from worldenv.interfaces.observation import Key
from worldenv.interfaces.policy import Policy
from worldenv.nn.instruction import tokenize
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.model_files import save_model


def given(starts):
    """Pictures [B, H, W, 3], poses and tokens."""
    return starts.seen.frames[:, 0], starts.seen.proprio, tokenize(starts.instructions)


@pytest.mark.parametrize("push", [-1e4, 0.0, 1e4])
def test_scale_stays_within_its_bounds(tiny, push):
    floors = (0.02, 0.03, 0.04, 0.1, 0.1, 0.1, 0.2)
    policy = SmallPolicy(SmallPolicyConfig(width=64, channels=16, blocks=1, scale_low=floors, scale_high=0.3))
    starts, low, high = tiny.starts(5), torch.tensor(floors), torch.full((7,), 0.3)
    torch.nn.init.constant_(policy.scale_head[-1].bias, push)
    scale = policy(*given(starts))[1].exp()
    assert (scale >= low * (1 - 1e-5)).all() and (scale <= high * (1 + 1e-5)).all()
    edge = {-1e4: low, 1e4: high}.get(push)
    if edge is not None:
        torch.testing.assert_close(scale, edge.expand_as(scale))


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_chunk_has_one_mean_and_one_scale_for_each_action(tiny, chunk):
    starts = tiny.starts(3)
    mu, beta = tiny.policy(chunk=chunk)(*given(starts))
    assert mu.shape == beta.shape == (3, chunk, 7)


def test_an_action_has_as_many_numbers_as_scales_and_the_view_is_the_one_that_is_named(tiny, tmp_path):
    config = SmallPolicyConfig(width=64, channels=16, blocks=1, scale_low=(0.05, 0.05, 0.05, 0.3), view="corner")
    save_model(tmp_path / "policy.safetensors", SmallPolicy(config), "policy", {})
    policy, starts = SmallPolicy.load(tmp_path / "policy.safetensors"), tiny.starts(3)
    key = Key(0, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert policy.act(starts.seen, policy.read(starts.texts), key, True).action.shape == (3, 4, 4)
    assert policy.views == ("corner",) and tiny.policy().views == ("agentview",)


def test_every_input_moves_the_action(tiny):
    policy, (frames, proprio, tokens) = tiny.policy(), given(tiny.starts(2))
    base = policy(frames, proprio, tokens)[0]
    assert not torch.allclose(base, policy(255 - frames, proprio, tokens)[0])
    assert not torch.allclose(base, policy(frames, proprio + 0.05, tokens)[0])
    assert not torch.allclose(base, policy(frames, proprio, tokens.flip(0))[0])


def test_what_was_read_and_seen_acts_as_the_whole_network(tiny):
    policy, starts = tiny.policy(), tiny.starts(5)
    read = policy.read(starts.texts)
    assert isinstance(policy, Policy) and read.shape[0] == 3 and not read.requires_grad
    with torch.no_grad():
        found, expected = policy.heads(policy.see(starts.seen, read), starts.seen.proprio), policy(*given(starts))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_reinforcement_learning_leaves_the_encoder_as_it_is(tiny):
    policy = tiny.policy()
    trained = {id(parameter) for parameter in policy.trainable()}
    for name, parameter in policy.named_parameters():
        assert (id(parameter) in trained) == (not name.startswith("encoder.")), name


def test_scale_likelihood_leaves_the_action_head_alone(tiny):
    policy, starts = tiny.policy(), tiny.starts(2)
    mu, beta = policy(*given(starts))
    laplace_log_prob(torch.zeros_like(mu), mu.detach(), beta).sum().backward()
    assert all(p.grad is None for p in policy.action_head.parameters())
    assert all(p.grad is not None and p.grad.any() for p in policy.scale_head.parameters())


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"chunk": 0}, "chunk is 0; it should be a whole number from 1"),
        ({"width": -64}, "width is -64"),
        ({"scale_low": (0.0,) * 7}, "scale_low is 0.0; it should be a number above 0"),
        ({"scale_low": ()}, "A numbers below scale_high, 0.5"),
        ({"scale_low": (0.5,) * 7, "scale_high": 0.5}, "A numbers below scale_high, 0.5"),
    ],
)
def test_contradictory_configuration_is_refused(bad, why):
    with pytest.raises(UserError, match=why):
        SmallPolicyConfig(**bad)
