"""What the gripper takes along: a contact network that says what the test wants, and what is painted of it."""

import math

import pytest
import torch

from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.patchify import patchify, unit
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer import contact
from worldenv.worlds.composer.contact import (
    DOUBT_PER_M,
    ContactNetwork,
    Course,
    Scene,
    Touch,
    channels,
    follow,
    look,
    numbers,
)
from worldenv.worlds.composer.layer import SIZE, Layer, project, window

K, SIDE = 4, 64
CAMERA = torch.from_numpy(tabletop_camera(SIDE).projection)[None]
GREY, RED, BLUE = (torch.tensor(colour) for colour in ((150.0, 140, 120), (210.0, 45, 45), (45.0, 85, 210)))
PLATE = GREY.round().to(torch.uint8).expand(1, SIDE, SIDE, 3)
SCENE = Scene(unit(PLATE)[0], moved_gripper(Kinematics(), clear_m=CLEAR_M))
HERE, THERE, FAR = ((-0.06, 0.02, 0.02), (0.06, 0.02, 0.02), (0.02, 0.12, 0.02))
OPEN, CLOSED = 1.0, 0.0
ONCE = (
    0.06  # of its area a thing of six pixels across may lose or gain at its edge, once: its mask goes through a window
)


def disk(point, radius_m=0.02):  # [1, SIDE, SIDE] float32: its share of each pixel
    place, depth = project(torch.tensor([point]), CAMERA)
    pixel = torch.arange(SIDE) + 0.5
    away = ((pixel - place[0, 0])[None, :] ** 2 + (pixel - place[0, 1])[:, None] ** 2).sqrt()
    return (radius_m * 92.93 / depth[0] + 0.5 - away).clamp(0, 1)[None]


def table(**colours):  # [1, SIDE, SIDE, 3] uint8, of disks at points
    frame = GREY.expand(1, SIDE, SIDE, 3)
    for point, colour in colours.values():
        frame = torch.lerp(frame, colour.expand_as(frame), disk(point)[..., None])
    return frame.round().to(torch.uint8)


def way(begin, end, opening, then=None):  # [1, K + 1, 7]: straight on; the fingers change in the first step
    out = torch.zeros(1, K + 1, 7)
    share = torch.arange(K + 1)[:, None] / K
    out[0, :, :3] = torch.lerp(torch.tensor(begin), torch.tensor(end), share)
    out[0, :, 6], out[0, 1:, 6] = opening, opening if then is None else then
    return out


NOTHING = torch.tensor([-8.0]), torch.zeros(1, 3), torch.full((1, SIZE, SIZE), -8.0)  # of `Touch`, of what is pushed


class Says:
    """A contact network that says what the test wants."""

    def __init__(self):
        self.calls, self.moves, self.point, self.hidden = 0, False, None, torch.full((1, K, SIZE, SIZE), -8.0)
        self.pushes = NOTHING

    def say(self, moves, thing=None):
        self.moves, self.point = moves, thing

    def __call__(self, pictures, plan):
        self.calls += 1
        sign = 8.0 if self.moves else -8.0
        mask = torch.full((1, SIZE, SIZE), -8.0)
        if self.point is not None:  # the window lies where the fingers close
            thing = (8 * disk(self.point)).clamp(
                max=1
            )  # as in the labels, a pixel is the thing's of which it has a part
            seen = window(thing[..., None], CAMERA, torch.tensor([self.point]))[:, 0]
            mask = torch.logit(seen, eps=3e-4)
        way = torch.zeros(1, K, 3)
        return Touch(torch.tensor([sign]), torch.full((1, K), sign), way, mask, self.hidden, *self.pushes)


class Imagination:
    """Frames that are painted from the layer alone: the first guess of `known_pictures`."""

    def __init__(self, frame, point):
        self.network, self.frame, self.first = Says(), frame, frame
        self.layer = Layer.begin(frame, torch.tensor([point]))

    def go(self, poses, moves=False, thing=None):
        self.network.say(moves, thing)
        places, self.hidden, self.doubt, self.frame = follow(self.network, self.layer, self.frame, poses, CAMERA, SCENE)
        layer, tips = self.layer, torch.cat([poses[:, :1, :3], poses[..., :3]], dim=1)
        places_all = torch.cat([layer.origin[:, None], places], dim=1)
        plate = patchify(SCENE.plate[None, None])[0, :, :, 0]
        known = self.first, self.frame, layer.clear, layer.mask, self.hidden
        self.known = known_pictures(*known, tips, places_all, CAMERA[:, None], plate)
        self.frame = to_frames(self.known[:, :, :, 1 + 2 * K : 1 + 3 * K])[:, -1]
        return places


def share_of(frame, colour):  # [SIDE, SIDE]: how much of each pixel has the colour
    axis = colour - GREY
    return ((frame[0].float() - GREY) @ axis / axis.square().sum()).clamp(0, 1)


def seen_at(frame, colour, point):  # area in px of the colour within 4 cm of the point
    return (share_of(frame, colour) * (disk(point, 0.04)[0] > 0)).sum().item()


ROUND = (HERE, (HERE[0], HERE[1], 0.12), (THERE[0], 0.1, 0.12), (0.0, 0.0, 0.15), (HERE[0], HERE[1], 0.12), HERE)


def depth(point):
    return project(torch.tensor([point]), CAMERA)[1].item()


def test_a_thing_that_is_carried_around_for_ten_chunks_is_painted_whole_and_does_not_fade():
    imagination, areas = Imagination(table(red=(HERE, RED)), HERE), []
    true = share_of(imagination.frame, RED).sum().item()
    places = imagination.go(way(HERE, HERE, OPEN, CLOSED), True, HERE)
    torch.testing.assert_close(places, torch.tensor(HERE).expand(1, K + 1, 3))
    assert imagination.layer.held.tolist() == [True]
    for begin, end in 2 * list(zip(ROUND, ROUND[1:], strict=False)):
        places = imagination.go(way(begin, end, CLOSED), False)  # what is held needs no second word
        torch.testing.assert_close(places[0, -1], torch.tensor(end), rtol=0, atol=1e-6)
        expected = true * (depth(HERE) / depth(end)) ** 2
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
        assert torch.equal(imagination.frame, frame) and not (imagination.layer.mask > 0).any()
        assert imagination.layer.held.tolist() == [False]


def test_a_thing_that_is_pushed_moves_as_far_as_the_network_says():
    imagination = Imagination(table(red=(HERE, RED)), HERE)
    rest = torch.linspace(0.01, 0.04, K)[None, :, None] * torch.tensor((1.0, 0, 0))
    says = imagination.network.__call__
    imagination.network.say(True, HERE)
    network = lambda *seen: says(*seen)._replace(grasps=torch.full((1, K), -8.0), rest=rest)  # noqa: E731
    layer, poses = imagination.layer, way(HERE, HERE, OPEN)
    places, _, doubt, _ = follow(network, layer, imagination.frame, poses, CAMERA, SCENE)
    torch.testing.assert_close(places[:, 1:], torch.tensor(HERE) + rest)
    assert (layer.mask > 250).any() and layer.held.tolist() == [False]
    torch.testing.assert_close(layer.place, places[:, -1])
    assert doubt.item() == pytest.approx(1 - math.exp(-DOUBT_PER_M * 0.04))


def test_what_a_held_thing_pushes_goes_as_far_as_the_network_says_and_stays_there():
    beside, then = ((HERE[0] + x, HERE[1], HERE[2]) for x in (0.045, 0.085))
    imagination = Imagination(table(red=(HERE, RED), blue=(beside, BLUE)), HERE)
    seen, says = (
        window(8 * disk(beside)[..., None].clamp(max=1 / 8), CAMERA, torch.tensor([HERE]))[:, 0],
        imagination.network,
    )
    mask, way_m = torch.logit(seen, eps=3e-4), torch.tensor([[0.04, 0, 0]])
    before, red = seen_at(imagination.frame, BLUE, beside), seen_at(imagination.frame, RED, HERE)
    says.pushes = torch.tensor([8.0]), way_m, mask
    up = (HERE[0], HERE[1], 0.05)
    imagination.go(way(HERE, up, OPEN, CLOSED), True, HERE)
    says.pushes = NOTHING
    for frame in (imagination.frame, imagination.layer.clear):
        there = (share_of(frame, BLUE) * (disk(then, 0.035)[0] > 0)).sum().item()
        assert there == pytest.approx(before, rel=ONCE) and seen_at(frame, BLUE, then) < 1.1 * before
    assert imagination.doubt.item() == pytest.approx(1 - math.exp(-DOUBT_PER_M * 0.04), abs=0.02)
    assert share_of(imagination.layer.clear, RED).sum().item() == pytest.approx(
        red, rel=ONCE
    )  # the held thing is whole
    clear = imagination.layer.clear.clone()
    imagination.go(way(up, (FAR[0], FAR[1], 0.05), CLOSED), True)
    assert torch.equal(imagination.layer.clear, clear)
    assert seen_at(imagination.frame, BLUE, then) == pytest.approx(before, rel=2 * ONCE)


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


def carry_low(imagination, begin, end):
    imagination.go(way(begin, begin, OPEN, CLOSED), True, begin)
    imagination.go(way(begin, end, CLOSED))
    imagination.go(way(end, end, CLOSED, OPEN))  # let go


def test_a_second_thing_becomes_a_layer_of_its_own_and_the_first_stays_where_it_was_left():
    near, beyond = (-0.06, 0.12, 0.02), (0.06, 0.12, 0.02)
    imagination = Imagination(table(red=(HERE, RED), blue=(near, BLUE)), HERE)
    red, blue = (seen_at(imagination.frame, c, p) for c, p in ((RED, HERE), (BLUE, near)))
    carry_low(imagination, HERE, THERE)
    imagination.go(way(THERE, near, OPEN))
    carry_low(imagination, near, beyond)
    layer = imagination.layer
    torch.testing.assert_close(layer.origin, torch.tensor([near]))
    torch.testing.assert_close(layer.place, torch.tensor([beyond]), rtol=0, atol=1e-6)
    for picture in (imagination.frame, to_frames(imagination.known)[:, -1]):  # on the last frame, and on the clear one
        assert seen_at(picture, RED, THERE) == pytest.approx(red, rel=ONCE)
        assert seen_at(picture, BLUE, beyond) == pytest.approx(blue, rel=ONCE)
        assert seen_at(picture, RED, HERE) < 0.05 * red and seen_at(picture, BLUE, near) < 0.05 * blue


def test_the_same_thing_is_no_second_one():
    imagination = Imagination(table(red=(HERE, RED)), HERE)
    carry_low(imagination, HERE, THERE)
    clear = imagination.layer.clear.clone()
    carry_low(imagination, THERE, FAR)
    torch.testing.assert_close(imagination.layer.origin, torch.tensor([HERE]))
    torch.testing.assert_close(imagination.layer.place, torch.tensor([FAR]), rtol=0, atol=1e-6)
    assert torch.equal(imagination.layer.clear, clear)


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
    layer.mask.fill_(9)
    layer.held.fill_(held)
    network = Says()
    network.say(False)
    follow(network, layer, new, way(point, point, CLOSED), CAMERA, SCENE)
    is_new = height > CLEAR_M and not held
    assert torch.equal(layer.clear, new if is_new else old)
    assert (layer.mask == (0 if is_new else 9)).all() and layer.held.tolist() == [held]


def mixed(n, seed=0):  # layer, frames, poses, cameras of episodes in all states
    draw = torch.Generator().manual_seed(seed)
    frame, clear = torch.randint(256, (2, n, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8)
    poses = torch.tensor([0, 0, 0.06, 0, 0, 0, 0.5]) + torch.tensor([0.1, 0.1, 0.05, 0.2, 0.2, 0.2, 0.5]) * (
        2 * torch.rand(n, K + 1, 7, generator=draw) - 1
    )
    poses[::2, :, 2] += 0.1  # nothing is near every other one
    place, layer = poses[:, 0, :3] + 0.02, Layer.begin(clear, poses[:, 1, :3])
    layer.place.copy_(place)
    layer.mask.copy_(
        torch.randint(256, layer.mask.shape, generator=draw) * (torch.rand(n, generator=draw) < 0.5).view(-1, 1, 1)
    )
    layer.held.copy_(torch.rand(n, generator=draw) < 0.3)
    return layer, frame, poses, CAMERA.expand(n, 3, 4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = ContactNetwork(K)
    network.decide[-1].weight.data.mul_(20)  # that it says yes as often as no
    return network.eval()


@torch.no_grad()
def test_episodes_that_are_looked_at_for_nothing_come_out_the_same(network, monkeypatch):
    layer, *rest = mixed(24)
    other = layer.each(torch.clone)
    course = follow(network, layer, *rest, SCENE)
    monkeypatch.setattr(contact, "rows_with", lambda mask: torch.arange(len(mask)))  # as on a GPU
    torch.testing.assert_close(follow(network, other, *rest, SCENE), course)
    for one, two in zip(layer.tensors(), other.tensors(), strict=True):
        assert (
            (one.float() - two.float()).abs().max() < 1.01
            if one.dtype == torch.uint8
            else torch.allclose(one.float(), two.float())
        )
    assert 0 < layer.held.sum() < 24 and (layer.place != other.origin).any()


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
