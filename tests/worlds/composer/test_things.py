"""The two things of a layer: what is pushed, what was moved before, and when they change places."""

import math

import pytest
import torch
from painted import (
    BLUE,
    CAMERA,
    CLOSED,
    FAR,
    HERE,
    NOTHING,
    ONCE,
    OPEN,
    RED,
    SCENE,
    THERE,
    Imagination,
    carry_low,
    disk,
    seen_at,
    share_of,
    smaller,
    table,
    way,
)

from worldenv.ops.unpatchify import to_frames
from worldenv.worlds.composer.contact import DOUBT_PER_M
from worldenv.worlds.composer.layer import Thing, window, with_other


def test_a_second_thing_becomes_a_layer_of_its_own_and_the_first_stays_where_it_was_left():
    near, beyond = (-0.06, 0.12, 0.02), (0.06, 0.12, 0.02)
    imagination = Imagination(table(red=(HERE, RED), blue=(near, BLUE)), HERE)
    red, blue = (seen_at(imagination.frame, c, p) for c, p in ((RED, HERE), (BLUE, near)))
    carry_low(imagination, HERE, THERE)
    imagination.go(way(THERE, near, OPEN))
    carry_low(imagination, near, beyond)
    layer = imagination.layer
    torch.testing.assert_close(layer.thing.origin, torch.tensor([near]))
    torch.testing.assert_close(layer.thing.place, torch.tensor([beyond]), rtol=0, atol=1e-6)
    for picture in (imagination.frame, to_frames(imagination.known)[:, -1]):  # on the last frame, and on the clear one
        assert seen_at(picture, RED, THERE) == pytest.approx(red, rel=ONCE)
        assert seen_at(picture, BLUE, beyond) == pytest.approx(blue, rel=ONCE)
        assert seen_at(picture, RED, HERE) < 0.05 * red and seen_at(picture, BLUE, near) < 0.05 * blue


def test_the_same_thing_is_no_second_one():
    imagination = Imagination(table(red=(HERE, RED)), HERE)
    carry_low(imagination, HERE, THERE)
    clear = imagination.layer.clear.clone()
    carry_low(imagination, THERE, FAR)
    torch.testing.assert_close(imagination.layer.thing.origin, torch.tensor([HERE]))
    torch.testing.assert_close(imagination.layer.thing.place, torch.tensor([FAR]), rtol=0, atol=1e-6)
    assert torch.equal(imagination.layer.clear, clear)


def pushing(imagination, point, way_m, centre=HERE):  # from now on the network says that this thing is pushed so far
    seen = window(8 * disk(point)[..., None].clamp(max=1 / 8), CAMERA, torch.tensor([centre]))[:, 0]
    imagination.network.pushes = torch.tensor([8.0]), torch.tensor([way_m]), torch.logit(seen, eps=3e-4)


def beside(x):  # a place by this much to the side of HERE
    return (HERE[0] + x, HERE[1], HERE[2])


def test_what_a_held_thing_pushes_goes_as_far_as_the_network_says_and_stays_there():
    here, there = beside(0.045), beside(0.085)
    imagination = Imagination(table(red=(HERE, RED), blue=(here, BLUE)), HERE)
    blue = seen_at(imagination.frame, BLUE, here)
    pushing(imagination, here, (0.04, 0, 0))
    clear, up = imagination.layer.clear.clone(), (HERE[0], HERE[1], 0.05)
    imagination.go(way(HERE, up, OPEN, CLOSED), True, HERE)
    imagination.network.pushes = NOTHING
    for frame in (imagination.frame, imagination.layer.scene(CAMERA, SCENE.plate)):
        seen = (share_of(frame, BLUE) * (disk(there, 0.035)[0] > 0)).sum().item()
        assert seen == pytest.approx(blue, rel=ONCE) and seen_at(frame, BLUE, there) < 1.1 * blue
    assert imagination.doubt.item() == pytest.approx(1 - math.exp(-DOUBT_PER_M * 0.04), abs=0.02)
    imagination.go(way(up, (FAR[0], FAR[1], 0.05), CLOSED), True)
    assert torch.equal(imagination.layer.clear, clear)
    assert seen_at(imagination.frame, BLUE, there) == pytest.approx(blue, rel=2 * ONCE)


def test_what_is_pushed_in_several_chunks_is_as_sharp_as_after_one():
    frames, scenes = [], []
    for parts in (1, 4):
        imagination = Imagination(table(red=(HERE, RED), blue=(beside(0.045), BLUE)), HERE)
        imagination.go(way(HERE, HERE, OPEN, CLOSED), True, HERE)
        for i in range(parts):
            pushing(imagination, beside(0.045 + 0.04 / parts * i), (0.04 / parts, 0, 0))
            imagination.go(way(HERE, HERE, CLOSED), True)
        frames.append(imagination.frame.float())
        scenes.append(imagination.layer.scene(CAMERA, SCENE.plate).float())
    assert (scenes[0] - scenes[1]).abs().max() <= 1
    assert (frames[0] - frames[1]).abs().max() < 30  # at the edge of where it was in between


def test_a_thing_that_was_pushed_and_is_grasped_then_is_still_the_same_and_the_first_thing_stays_where_it_is():
    here, there = beside(0.045), beside(0.085)
    imagination = Imagination(table(red=(HERE, RED), blue=(here, BLUE)), HERE)
    red, blue = (seen_at(imagination.frame, c, p) for c, p in ((RED, HERE), (BLUE, here)))
    clear, behind = imagination.layer.clear.clone(), (HERE[0] - 0.03, 0.1, 0.02)
    pushing(imagination, here, (0.04, 0, 0))
    imagination.go(way(HERE, HERE, OPEN, CLOSED), True, HERE)
    imagination.network.pushes = NOTHING
    imagination.go(way(HERE, behind, CLOSED))
    imagination.go(way(behind, behind, CLOSED, OPEN))  # let go
    imagination.go(way(there, there, OPEN, CLOSED), True, there)
    imagination.go(way(there, FAR, CLOSED))
    layer = imagination.layer
    assert torch.equal(layer.clear, clear)
    for thing, before, after in ((layer.thing, here, FAR), (layer.other, HERE, behind)):
        expected = torch.tensor([after]) - torch.tensor([before])
        torch.testing.assert_close(thing.place - thing.origin, expected, rtol=0, atol=1e-6)
    for picture in (imagination.frame, to_frames(imagination.known)[:, -1]):
        seen, expected = share_of(picture, RED).sum().item(), red * smaller(HERE, behind)
        assert seen == pytest.approx(seen_at(picture, RED, behind), abs=0.1) == pytest.approx(expected, rel=2 * ONCE)
        assert seen_at(picture, BLUE, FAR) == pytest.approx(blue * smaller(here, FAR), rel=2 * ONCE)


def test_a_third_thing_that_is_moved_leaves_the_one_before_the_last_where_it_lies():
    near, beyond = (-0.06, 0.12, 0.02), (0.06, 0.12, 0.02)
    imagination = Imagination(table(red=(HERE, RED), blue=(near, BLUE), more=((0.0, -0.06, 0.02), BLUE)), HERE)
    red = seen_at(imagination.frame, RED, HERE)
    carry_low(imagination, HERE, THERE)
    carry_low(imagination, near, beyond)
    clear = imagination.layer.clear.clone()
    carry_low(imagination, (0.0, -0.06, 0.02), (0.06, -0.06, 0.02))
    layer = imagination.layer
    assert seen_at(clear, RED, HERE) == pytest.approx(red) and seen_at(layer.clear, RED, HERE) < 0.05 * red
    assert seen_at(layer.clear, RED, THERE) == pytest.approx(red, rel=ONCE)
    assert seen_at(imagination.frame, RED, THERE) == pytest.approx(red, rel=ONCE)
    torch.testing.assert_close(layer.other.place, torch.tensor([beyond]), rtol=0, atol=1e-6)


def test_the_other_thing_is_painted_around_the_layers_thing_and_takes_none_of_its_pixels_along():
    here, there, near = (
        torch.tensor([beside(x)]) + torch.tensor([0, y, 0]) for x, y in ((0.02, 0), (0.02, 0.06), (0, 0))
    )
    clear = table(blue=(here[0].tolist(), BLUE), red=(HERE, RED))  # the red one stands before the blue one
    red, blue = ((255 * disk(point)).to(torch.uint8) for point in (HERE, here[0].tolist()))
    taken = [
        seen_at(with_other(clear, mask, Thing(blue, here, there), CAMERA, SCENE.plate), RED, there[0].tolist())
        for mask in (red, torch.zeros_like(red))
    ]
    assert taken[0] < 0.5 * taken[1]  # some red comes along with resampling
    found = with_other(clear, red, Thing(blue, here, near), CAMERA, SCENE.plate)
    assert torch.equal(found[red > 0], clear[red > 0]) and not torch.equal(found, clear)
