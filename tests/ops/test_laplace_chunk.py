from math import log

import pytest
import torch

import worldenv.ops.laplace_chunk as module
from worldenv import ops
from worldenv.ops.laplace_chunk import laplace_chunk, laplace_chunk_reference, laplace_log_prob
from worldenv.ops.philox import Use, philox

TOLERANCE = {torch.float32: 2e-5}
FACES = pytest.mark.parametrize("face", [laplace_chunk, laplace_chunk_reference])
EXPLORE = pytest.mark.parametrize("explore", [True, False])


def inputs(b=3, k=4, a=7, explore=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mu, beta = torch.randn(b, k, a, generator=draw), torch.randn(b, k, a, generator=draw) / 2 - 2
    return mu, beta, 2**40 + 9, torch.arange(b) * 3 + 2**33, torch.arange(b) % 5, explore


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize(("b", "k", "a"), [(0, 4, 7), (1, 1, 1), (3, 4, 7), (2, 9, 7), (5, 3, 1), (300, 8, 32)])
@EXPLORE
def test_compiled_face_equals_the_reference(b, k, a, explore):
    arguments = inputs(b, k, a, explore)
    assert_same(laplace_chunk(*arguments), laplace_chunk_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(k=9)
    assert_same(at_level(level, "laplace_chunk", *arguments), laplace_chunk_reference(*arguments))


@FACES
def test_draws_are_those_of_philox_by_inversion(face):
    mu, beta, seed, episode, chunk, _ = arguments = inputs()
    u = philox(seed, episode, chunk, Use.ACTION, (4, 7)).double() - 0.5
    expected = mu - beta.double().exp() * u.sign() * (1 - 2 * u.abs()).log()
    torch.testing.assert_close(face(*arguments)[0], expected.float(), rtol=1e-5, atol=1e-6)


@FACES
@EXPLORE
def test_log_probability_is_that_of_the_action(face, explore):
    mu, beta, *_ = arguments = inputs(explore=explore)
    action, log_prob = face(*arguments)
    expected = torch.distributions.Laplace(mu.double(), beta.double().exp()).log_prob(action.double()).sum((1, 2))
    torch.testing.assert_close(log_prob, expected.float(), rtol=1e-6, atol=2e-5)


@FACES
def test_without_exploration_the_action_is_the_mean(face):
    mu, beta, *_ = arguments = inputs(explore=False)
    action, log_prob = face(*arguments)
    assert torch.equal(action, mu) and action.data_ptr() != mu.data_ptr()
    torch.testing.assert_close(log_prob, -(beta + log(2)).sum((1, 2)), rtol=1e-6, atol=1e-5)


@FACES
def test_draws_follow_the_laplace_distribution(face):
    flat, episode = torch.zeros(2000, 4, 25), torch.arange(2000)
    draw = face(flat, flat, 5, episode, episode, True)[0].flatten().sort().values.double()
    assert draw.isfinite().all()
    expected = torch.distributions.Laplace(0.0, 1.0).cdf(draw)
    assert (expected - torch.arange(len(draw)) / len(draw)).abs().max() < 0.004


def test_ends_of_the_uniform_numbers_give_finite_actions(monkeypatch):
    ends = torch.tensor([0.0, 0.5, 1 - 2.0**-24]).view(1, 1, 3)
    monkeypatch.setattr(module, "philox_reference", lambda *_: ends)
    episode, flat = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 3)
    action, _ = laplace_chunk_reference(flat, flat, 0, episode, episode, True)
    assert action[0, 0, 0] < -14 and action[0, 0, 1] == 0 and action[0, 0, 2] > 14 and action.isfinite().all()


def test_a_chunk_is_the_same_alone_and_in_a_batch():
    mu, beta, seed, episode, chunk, explore = inputs(b=7)
    part = slice(4, 5)
    alone = laplace_chunk(mu[part], beta[part], seed, episode[part], chunk[part], explore)
    for one, all_of_them in zip(alone, laplace_chunk(mu, beta, seed, episode, chunk, explore), strict=True):
        assert torch.equal(one[0], all_of_them[4])


def test_a_number_that_is_not_finite_spoils_its_chunk_and_no_other():
    arguments = inputs()
    arguments[0][1, 2, 3] = torch.nan
    action, log_prob = laplace_chunk(*arguments)
    assert action.isnan().sum() == 1 and log_prob.isnan().tolist() == [False, True, False]


def test_log_probability_has_a_gradient():
    mu, beta, *_ = inputs()
    mu, beta = mu.double().requires_grad_(), beta.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda mu, beta: laplace_log_prob(torch.zeros_like(mu), mu, beta), (mu, beta))


def test_operator_passes_opcheck():
    for explore in (True, False):
        torch.library.opcheck(torch.ops.worldenv.laplace_chunk.default, inputs(explore=explore))


def test_operator_is_traced_without_a_graph_break():
    def step(mu, beta, episode, chunk):
        action, log_prob = laplace_chunk(mu * 1.0, beta, 3, episode, chunk)
        return action.sum((1, 2)) + log_prob

    tensors = [part for part in inputs() if torch.is_tensor(part)]
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*tensors), step(*tensors))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "laplace_chunk_reference", lambda *arguments: "reference ran")
    assert laplace_chunk(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 28), r"mu has shape \[3, 28\]; it should be \[B, K, A\]"),
        (0, torch.zeros(3, 4, 7).half(), r"mu is torch.float16; .* pass mu.float\(\)"),
        (1, torch.zeros(3, 4, 6), r"beta has shape \[3, 4, 6\]; it should be \[3, 4, 7\]"),
        (3, torch.zeros(3), r"episode is torch.float32 \[3\] on cpu; it should be torch.int64 \[3\] on cpu"),
        (4, torch.zeros(2, dtype=torch.int64), r"chunk is torch.int64 \[2\] on cpu; it should be torch.int64 \[3\]"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs())
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        laplace_chunk(*arguments)
