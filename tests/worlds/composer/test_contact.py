"""What the gripper takes along: a contact network that says what the test wants, and what is painted of it."""

import math

import pytest
import torch
from painted import (
    BLUE,
    CAMERA,
    CLOSED,
    HERE,
    NOTHING,
    ONCE,
    OPEN,
    RED,
    SCENE,
    SIDE,
    THERE,
    Imagination,
    K,
    Says,
    disk,
    seen_at,
    share_of,
    smaller,
    table,
    way,
)

from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer import contact
from worldenv.worlds.composer import layer as layer_module
from worldenv.worlds.composer.contact import DOUBT_PER_M, ContactNetwork, Course, Touch, channels, follow, look, numbers
from worldenv.worlds.composer.layer import SIZE, Layer, window

ROUND = (HERE, (HERE[0], HERE[1], 0.12), (THERE[0], 0.1, 0.12), (0.0, 0.0, 0.15), (HERE[0], HERE[1], 0.12), HERE)


def test_a_thing_that_is_carried_around_for_ten_chunks_is_painted_whole_and_does_not_fade():
    imagination, areas = Imagination(table(red=(HERE, RED)), HERE), []
    true = share_of(imagination.frame, RED).sum().item()
    places = imagination.go(way(HERE, HERE, OPEN, CLOSED), True, HERE)
    torch.testing.assert_close(places, torch.tensor(HERE).expand(1, K + 1, 3))
    assert imagination.layer.held.tolist() == [True]
    for begin, end in 2 * list(zip(ROUND, ROUND[1:], strict=False)):
        places = imagination.go(way(begin, end, CLOSED), False)  # what is held needs no second word
        torch.testing.assert_close(places[0, -1], torch.tensor(end), rtol=0, atol=1e-6)
        expected = true * smaller(HERE, end)
        assert seen_at(imagination.frame, RED, end) == pytest.approx(expected, rel=ONCE)
        areas.append(share_of(imagination.frame, RED).sum().item())  # and nowhere else
        assert areas[-1] == pytest.approx(expected, rel=ONCE)
    assert imagination.network.calls == 11
    assert areas[5:] == pytest.approx(areas[:5], rel=0.01)


def test_a_thing_that_is_not_taken_along_stays_where_it_was_to_the_bit():
    frame = table(red=(HERE, RED))
    imagination = Imagination(frame, HERE)
    for begin, end in zip((HERE, *ROUND), ROUND, strict=False):
        imagination.go(way(begin, end, OPEN if begin == end else CLOSED, CLOSED), False, HERE)
        assert torch.equal(imagination.frame, frame) and not (imagination.layer.thing.mask > 0).any()
        assert imagination.layer.held.tolist() == [False]


def test_a_thing_that_is_pushed_moves_as_far_as_the_network_says():
    imagination = Imagination(table(red=(HERE, RED)), HERE)
    rest = torch.linspace(0.01, 0.04, K)[None, :, None] * torch.tensor((1.0, 0, 0))
    says = imagination.network.__call__
    imagination.network.say(True, HERE)
    network = lambda *seen: says(*seen)._replace(grasps=torch.full((1, K), -8.0), rest=rest)  # noqa: E731
    layer, poses = imagination.layer, way(HERE, HERE, OPEN)
    places, _, doubt, *_ = follow(network, layer, imagination.frame, poses, CAMERA, SCENE)
    torch.testing.assert_close(places[:, 1:], torch.tensor(HERE) + rest)
    assert (layer.thing.mask > 250).any() and layer.held.tolist() == [False]
    torch.testing.assert_close(layer.thing.place, places[:, -1])
    assert doubt.item() == pytest.approx(1 - math.exp(-DOUBT_PER_M * 0.04))


def test_a_thing_behind_another_shows_only_what_the_other_does_not_hide_and_is_whole_again_when_it_comes_out():
    imagination = Imagination(table(red=(HERE, RED), blue=(THERE, BLUE)), HERE)
    red, blue = (seen_at(imagination.frame, c, p) for c, p in ((RED, HERE), (BLUE, THERE)))
    imagination.go(way(HERE, HERE, OPEN, CLOSED), True, HERE)
    assert not imagination.hidden.any()
    before = (0.06, 0.04, 0.02)  # the blue thing stands before it
    says = imagination.network.hidden
    says[:, 1:] = torch.logit(window(disk(THERE)[..., None], CAMERA, torch.tensor([[0.0, 0.03, 0.02]])), eps=3e-4)
    imagination.go(way(HERE, before, CLOSED))
    assert not imagination.hidden[:, 0].any() and (imagination.hidden[0, -1] > 250).sum() > 8
    assert seen_at(imagination.frame, BLUE, THERE) == pytest.approx(blue, rel=2 * ONCE)
    assert share_of(imagination.frame, RED).sum() < 0.8 * red
    says.fill_(-8.0)
    imagination.go(way(before, HERE, CLOSED))
    assert seen_at(imagination.frame, RED, HERE) == pytest.approx(red, rel=2 * ONCE)
    assert seen_at(imagination.frame, BLUE, THERE) == pytest.approx(blue, rel=2 * ONCE)


def test_where_there_is_no_layer_nothing_is_hidden():
    imagination = Imagination(table(red=(HERE, RED)), HERE)
    imagination.network.hidden.fill_(8.0)
    imagination.go(way(HERE, HERE, OPEN), False)
    assert not imagination.hidden.any()


def test_where_nothing_is_near_the_network_is_not_asked():
    high = (0.0, 0.0, CLEAR_M + 0.01)
    imagination = Imagination(table(red=(HERE, RED)), high)
    imagination.go(way(high, high, OPEN, CLOSED), True, HERE)
    assert imagination.network.calls == 0 and not imagination.layer.held.any()
    imagination.go(way(high, (0.0, 0.0, CLEAR_M - 0.01), CLOSED), False)
    assert imagination.network.calls == 1
    imagination.layer.held.fill_(True)
    imagination.go(way(high, high, CLOSED))
    assert imagination.network.calls == 2


@pytest.mark.parametrize("on_gpu", [False, True])  # where all episodes are looked at
@pytest.mark.parametrize(("said", "low", "high"), [(0.5, 0.49, 0.51), (0.99, 0.05, 0.1), (0.01, 0.05, 0.1)])
def test_doubt_is_high_where_the_network_cannot_decide_whether_something_is_grasped(
    monkeypatch, said, low, high, on_gpu
):
    if on_gpu:
        monkeypatch.setattr(contact, "rows_with", lambda mask: torch.arange(len(mask)))
    grasps = torch.full((1, K), torch.logit(torch.tensor(said)).item())
    pixels = torch.zeros(1, SIZE, SIZE), torch.zeros(1, K, SIZE, SIZE)
    network = lambda *seen: Touch(grasps[:, 0], grasps, torch.zeros(1, K, 3), *pixels, *NOTHING)  # noqa: E731
    frame, closes = table(red=(HERE, RED)), way(HERE, HERE, OPEN, CLOSED)

    def doubt(poses, held=False):
        layer = Layer.begin(frame, torch.tensor([HERE]))
        layer.held.fill_(held)
        return follow(network, layer, frame, poses, CAMERA, SCENE).doubt.item()

    assert low < doubt(closes) < high
    above = (0.0, 0.0, CLEAR_M + 0.01)
    for decided in (way(HERE, HERE, OPEN), way(HERE, HERE, CLOSED), way(above, above, OPEN, CLOSED)):
        assert doubt(decided) == 0.0  # nothing is to be grasped
    assert doubt(closes, held=True) == 0.0


@pytest.mark.parametrize("height", [CLEAR_M - 0.01, CLEAR_M + 0.01])
@pytest.mark.parametrize("held", [False, True])
def test_the_clear_frame_is_renewed_only_above_everything_with_nothing_held(height, held):
    old, new = table(red=(HERE, RED)), table(red=(THERE, RED))
    layer, point = Layer.begin(old, torch.tensor([HERE])), (0.0, 0.0, height)
    layer.thing.mask.fill_(9)
    layer.held.fill_(held)
    network = Says()
    network.say(False)
    follow(network, layer, new, way(point, point, CLOSED), CAMERA, SCENE)
    is_new = height > CLEAR_M and not held
    assert torch.equal(layer.clear, new if is_new else old)
    assert (layer.thing.mask == (0 if is_new else 9)).all() and layer.held.tolist() == [held]


def mixed(n, seed=0):  # layer, frames, poses, cameras of episodes in all states
    draw = torch.Generator().manual_seed(seed)
    frame, clear = torch.randint(256, (2, n, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8)
    poses = torch.tensor([0, 0, 0.06, 0, 0, 0, 0.5]) + torch.tensor([0.1, 0.1, 0.05, 0.2, 0.2, 0.2, 0.5]) * (
        2 * torch.rand(n, K + 1, 7, generator=draw) - 1
    )
    poses[::2, :, 2] += 0.1  # nothing is near every other one
    layer = Layer.begin(clear, poses[:, 1, :3])
    for thing, away in ((layer.thing, 0.02), (layer.other, -0.03)):
        thing.place.copy_(poses[:, 0, :3] + away)
        some = (torch.rand(n, generator=draw) < 0.5).view(-1, 1, 1)
        thing.mask.copy_(torch.randint(256, thing.mask.shape, generator=draw) * some)
    layer.held.copy_(torch.rand(n, generator=draw) < 0.3)
    return layer, frame, poses, CAMERA.expand(n, 3, 4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = ContactNetwork(K, stops=True, held_open=True)
    network.decide[-1].weight.data.mul_(20)  # that it says yes as often as no
    return network.eval()


@torch.no_grad()
def test_episodes_that_are_looked_at_for_nothing_come_out_the_same(network, monkeypatch):
    layer, *rest = mixed(24)
    other = layer.each(torch.clone)
    course = follow(network, layer, *rest, SCENE)
    for module in (contact, layer_module):
        monkeypatch.setattr(module, "rows_with", lambda mask: torch.arange(len(mask)))  # as on a GPU
    torch.testing.assert_close(follow(network, other, *rest, SCENE), course)
    for one, two in zip(layer.tensors(), other.tensors(), strict=True):
        assert (
            (one.float() - two.float()).abs().max() < 1.01
            if one.dtype == torch.uint8
            else torch.allclose(one.float(), two.float())
        )
    assert 0 < layer.held.sum() < 24 and (layer.thing.place != other.thing.origin).any()


@torch.no_grad()
def test_an_episode_does_not_see_its_neighbours(network):
    layer, frame, poses, camera = mixed(6)
    alone = layer.each(lambda tensor: tensor[2:3].clone())
    course = follow(network, layer, frame, poses, camera, SCENE)
    found = follow(network, alone, frame[2:3], poses[2:3], camera[2:3], SCENE)
    torch.testing.assert_close(found, Course(*(part[2:3] for part in course)))


def test_view_has_the_channels_and_numbers_that_the_network_reads_and_every_weight_learns(network):
    layer, *rest = mixed(5)
    view = look(layer, *rest, SCENE)
    assert view.pictures.shape == (5, channels(K), SIZE, SIZE) and view.numbers.shape == (5, numbers(K))
    assert view.pictures.min() >= -1.0001 and view.pictures.max() <= 1.0001
    said = network(view.pictures, view.numbers)
    assert said.mask.shape == (5, SIZE, SIZE) and said.rest.shape == (5, K, 3)
    assert said.hidden.shape == (5, K, SIZE, SIZE)
    sum(part.square().sum() for part in said).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
