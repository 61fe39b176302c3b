import math

import pytest
import torch

import worldenv.ops.ppo_loss as module
from worldenv import ops
from worldenv.ops.laplace_chunk import laplace_log_prob
from worldenv.ops.ppo_loss import ppo_loss, ppo_loss_reference, ppo_loss_with_gradient_reference

TOLERANCE = {torch.float32: 2e-5}
FACES = pytest.mark.parametrize("face", [ppo_loss, ppo_loss_reference])
SHAPES = pytest.mark.parametrize(("b", "k", "a"), [(1, 1, 1), (3, 4, 7), (63, 4, 7), (2, 9, 7), (700, 3, 11)])


def inputs(b=32, k=4, a=7, spread=0.3, seed=0):
    """Ratios on both sides of the clip and advantages of both signs; an action that is its mean."""
    draw = torch.Generator().manual_seed(seed)
    mu, beta = torch.randn(b, k, a, generator=draw), torch.randn(b, k, a, generator=draw) / 2 - 2
    action = mu + beta.exp() * torch.randn(b, k, a, generator=draw)
    action[0, 0, 0] = mu[0, 0, 0]
    behaviour = laplace_log_prob(action, mu, beta) + spread * torch.randn(b, generator=draw)
    return mu, beta, action, behaviour, torch.randn(b, generator=draw), 0.2


def gradients(face, mu, beta, *rest):
    mu, beta = mu.clone().requires_grad_(), beta.clone().requires_grad_()
    loss, share = face(mu, beta, *rest)
    assert not share.requires_grad
    return loss.detach(), share, *torch.autograd.grad(3 * loss, (mu, beta))


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=TOLERANCE[torch.float32])


@SHAPES
def test_compiled_face_and_its_gradient_equal_the_reference(b, k, a):
    arguments = inputs(b, k, a)
    assert_same(gradients(ppo_loss, *arguments), gradients(ppo_loss_reference, *arguments))


@SHAPES
def test_reference_of_the_gradient_is_what_autograd_finds(b, k, a):
    arguments = [part.double() if torch.is_tensor(part) else part for part in inputs(b, k, a)]
    loss, share, of_mu, of_beta = ppo_loss_with_gradient_reference(*arguments)
    expected = gradients(ppo_loss_reference, *arguments)
    for one, other in zip((loss, share, 3 * of_mu, 3 * of_beta), expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-9, atol=1e-12)


def test_gradient_of_the_reference_is_its_slope():
    mu, beta, *rest = (part.double() if torch.is_tensor(part) else part for part in inputs(b=4, spread=0.05))
    mu = mu + 1e-3  # away from the kink of |a - mu|
    assert torch.autograd.gradcheck(
        lambda *leaves: ppo_loss_reference(*leaves, *rest)[0], (mu.requires_grad_(), beta.requires_grad_())
    )


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs()
    assert_same(at_level(level, "ppo_loss", *arguments), ppo_loss_reference(*arguments))


@FACES
def test_loss_is_the_loop_over_chunks(face):
    mu, beta, action, behaviour, advantage, clip = arguments = inputs(b=63)
    expected, clipped = 0.0, 0
    now = laplace_log_prob(action.double(), mu.double(), beta.double())
    for a, b, adv in zip(now.tolist(), behaviour.tolist(), advantage.tolist(), strict=True):
        ratio = math.exp(a - b)
        held = min(max(ratio, 1 - clip), 1 + clip)
        expected -= min(ratio * adv, held * adv) / 63
        clipped += ratio != held
    loss, share = face(*arguments)
    assert loss.item() == pytest.approx(expected, rel=1e-4) and share.item() == pytest.approx(clipped / 63)


@FACES
def test_policy_that_acted_itself_has_minus_the_mean_advantage(face):
    mu, beta, action, _, advantage, clip = inputs()
    loss, share = face(mu, beta, action, laplace_log_prob(action, mu, beta), advantage, clip)
    torch.testing.assert_close(loss, -advantage.mean(), rtol=1e-4, atol=1e-5)
    assert share == 0


@FACES
def test_ratio_beyond_the_clip_teaches_nothing_where_it_would_go_further(face):
    mu, beta, action, _, _, clip = inputs(b=4)
    now = laplace_log_prob(action, mu, beta)
    behaviour = now + torch.tensor([1.0, 1.0, -1.0, -1.0])  # ratios below, below, above, above
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, share, of_mu, _ = gradients(face, mu, beta, action, behaviour, advantage, clip)
    assert share == 1 and of_mu.flatten(1).any(1).tolist() == [True, False, False, True]


@FACES
def test_where_the_action_is_the_mean_its_gradient_is_0(face):
    *_, of_mu, _ = gradients(face, *inputs(spread=0.01))
    assert of_mu[0, 0, 0] == 0 and of_mu[0, 0, 1:].all()


@FACES
@pytest.mark.parametrize("away", [-300.0, 300.0])
def test_far_ratio_stays_finite_and_teaches_nothing(face, away):
    mu, beta, action, behaviour, _, clip = inputs()
    loss, share, *slopes = gradients(face, mu, beta, action, behaviour + away, -torch.ones(32), clip)
    assert loss.isfinite() and share == 1 and not slopes[0].any() and not slopes[1].any()


@FACES
def test_what_is_not_a_number_shows_in_the_loss(face):
    mu, *rest = inputs()
    mu[3, 1, 2] = torch.nan
    assert face(mu, *rest)[0].isnan()


def test_threads_change_no_bit():
    arguments = inputs(b=3000)
    alone = ppo_loss(*arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = ppo_loss(*arguments)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])


def test_operator_passes_opcheck():
    mu, beta, *rest = inputs(b=3)
    arguments = (mu.requires_grad_(), beta.requires_grad_(), *rest)
    torch.library.opcheck(torch.ops.worldenv.ppo_loss.default, arguments)


def test_operator_is_traced_without_a_graph_break():
    mu, *rest = inputs()

    def step(mu):
        loss, share = ppo_loss(mu * 1.0, *rest)
        return loss + share

    found = []
    for face in (torch.compile(step, backend="aot_eager", fullgraph=True), step):
        leaf = mu.clone().requires_grad_()
        face(leaf).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "ppo_loss_reference", lambda *arguments: "reference ran")
    assert ppo_loss(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(0, 4, 7), r"mu has shape \[0, 4, 7\] and clip is 0.2; they should be \[B >= 1, K, A\]"),
        (0, torch.zeros(32, 4, 7).half(), r"mu is torch.float16; .* pass mu.float\(\)"),
        (1, torch.zeros(32, 4, 6), r"beta has shape \[32, 4, 6\]; it should be \[32, 4, 7\]"),
        (3, torch.zeros(32, 1), r"behaviour has shape \[32, 1\]; it should be \[32\]"),
        (4, torch.zeros(32).to("meta"), "advantage is on meta; it should be on cpu"),
        (5, 1.0, r"and clip is 1.0; they should be \[B >= 1, K, A\] and in \(0, 1\)"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        ppo_loss(*arguments)
