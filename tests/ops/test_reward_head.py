import copy

import pytest
import torch
from torch import nn

import worldenv.ops.reward_head as module
from worldenv import ops
from worldenv.ops.reward_head import reward_head, reward_head_reference

TOLERANCE = {torch.float32: 1e-5}
FACES = pytest.mark.parametrize("face", [reward_head, reward_head_reference])


def inputs(b=3, k=4, d=24, d1=17, d2=9, threshold=0.5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = (b, k, d), (b, d), (b, d), (3 * d,), (3 * d,), (d1, 3 * d), (d1,), (d2, d1), (d2,), (1, d2), (1,)
    feature, first, total, *weights = (torch.randn(shape, generator=draw) for shape in shapes)
    weights = [3 * weight / weight.shape[-1] ** 0.5 for weight in weights]
    count = torch.arange(b, dtype=torch.float32)[:, None] + 1
    return [feature, first, total, count, *weights, threshold]


def run(face, arguments):
    """reward and stop, and what total and count are then; the arguments stay as they are."""
    arguments = copy.deepcopy(arguments)
    return *face(*arguments), *arguments[2:4]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        if other.dtype == torch.bool:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("b", "k", "d", "d1", "d2"),
    [(0, 4, 8, 8, 8), (1, 1, 1, 1, 1), (3, 4, 24, 17, 9), (1, 63, 16, 5, 3), (13, 5, 33, 64, 8), (32, 4, 256, 256, 64)],
)
def test_compiled_face_equals_the_reference(b, k, d, d1, d2):
    arguments = inputs(b, k, d, d1, d2)
    assert_same(run(reward_head, arguments), run(reward_head_reference, arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_lower_instruction_sets_give_the_same(level, at_level):
    arguments = inputs(b=7)
    assert_same(at_level(level, "reward_head", *arguments), run(reward_head_reference, arguments)[:2])


@FACES
def test_reward_is_that_of_the_layers_on_the_pooled_features(face):
    feature, first, total, count, gain, shift, *_ = arguments = inputs()
    head = nn.Sequential(nn.LayerNorm(72), nn.Linear(72, 17), nn.ReLU(), nn.Linear(17, 9), nn.ReLU(), nn.Linear(9, 1))
    weights = arguments[4:-1]
    with torch.no_grad():
        for parameter, weight in zip(head.parameters(), weights, strict=True):
            parameter.copy_(weight)
        for k in range(4):
            total, count = total + feature[:, k], count + 1
            x = head.double()(torch.cat([feature[:, k], feature[:, k] - first, total / count], dim=1).double())
            torch.testing.assert_close(run(face, arguments)[0][:, k], x[:, 0].sigmoid().float(), rtol=0, atol=1e-5)


@FACES
def test_frames_one_at_a_time_give_the_same_as_together(face):
    arguments = inputs(k=5)
    reward, stop, total, count = run(face, arguments)
    steps = copy.deepcopy(arguments)
    for k in range(5):
        one, flag = face(arguments[0][:, k : k + 1], *steps[1:])
        torch.testing.assert_close(one[:, 0], reward[:, k], rtol=0, atol=1e-5)
        assert torch.equal(flag[:, 0], stop[:, k])
    torch.testing.assert_close(steps[2], total)
    assert torch.equal(steps[3], count) and count[:, 0].tolist() == [6, 7, 8]


@FACES
def test_threshold_decides_what_stops(face):
    arguments = inputs(b=20)
    reward = run(face, arguments)[0]
    assert reward.min() < 0.2 and reward.max() > 0.8
    for threshold in (0.0, 0.3, 0.9, 1.0):
        arguments[-1] = threshold
        assert torch.equal(run(face, arguments)[1], reward > threshold)


@FACES
def test_what_is_not_a_number_stops_nothing_and_spoils_no_other_episode(face):
    arguments = inputs(threshold=0.0)
    expected = run(face, arguments)
    arguments[0][1, 2, 5] = torch.nan
    reward, stop, total, _ = run(face, arguments)
    assert reward.isnan().tolist() == [[False] * 4, [False, False, True, True], [False] * 4]
    assert torch.equal(stop, ~reward.isnan()) and total[1, 5].isnan()
    torch.testing.assert_close(reward[[0, 2]], expected[0][[0, 2]])


@FACES
@pytest.mark.parametrize("bias", [-300.0, 300.0])
def test_far_logits_give_0_or_1(face, bias):
    arguments = inputs()
    arguments[-2] = torch.tensor([bias])
    assert torch.equal(run(face, arguments)[0].round(), torch.full((3, 4), float(bias > 0)))


def test_an_episode_is_the_same_alone_and_in_a_batch():
    arguments = inputs(b=30)
    alone = [part[17:18] for part in arguments[:4]] + arguments[4:]
    for one, all_of_them in zip(run(reward_head, alone), run(reward_head, arguments), strict=True):
        torch.testing.assert_close(one[0], all_of_them[17], rtol=0, atol=1e-6)


def test_features_may_be_strided():
    arguments = inputs()
    strided = [arguments[0].transpose(0, 1).contiguous().transpose(0, 1), *arguments[1:]]
    assert torch.equal(run(reward_head, strided)[0], run(reward_head, arguments)[0])


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.worldenv.reward_head.default, tuple(inputs()))


def test_operator_is_traced_without_a_graph_break():
    def step(feature, *others):
        reward, stop = reward_head(feature * 1.0, *others, 0.5)
        return torch.where(stop, reward, 0.0)

    arguments = inputs()[:-1]
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(*copy.deepcopy(arguments)), step(*copy.deepcopy(arguments)))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "reward_head_reference", lambda *arguments: "reference ran")
    assert reward_head(*inputs()) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 24), r"feature has shape \[3, 24\], .*; they should be \[B, K >= 1, D\]"),
        (0, torch.zeros(3, 0, 24), r"feature has shape \[3, 0, 24\], .*; they should be \[B, K >= 1, D\]"),
        (0, torch.zeros(3, 4, 24).half(), r"feature is torch.float16; .* pass feature.float\(\)"),
        (2, torch.zeros(3, 23), r"total has shape \[3, 23\]; it should be \[3, 24\]"),
        (2, torch.zeros(24, 3).T, "total is written in place; it should be contiguous"),
        (3, torch.zeros(3), r"count has shape \[3\]; it should be \[3, 1\]"),
        (6, torch.zeros(17, 71), r"weight1 has shape \[17, 71\]; it should be \[17, 72\]"),
        (10, torch.zeros(1, 9).to("meta"), "weight3 is on meta; it should be on cpu"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = inputs()
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        reward_head(*arguments)
