"""Imagination that is painted of the layer alone: a contact network that says what a test wants, and coloured disks."""

import torch

from worldenv.ops.known_pictures import known_pictures
from worldenv.ops.patchify import patchify, unit
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.suites.tabletop.suite import CLEAR_M
from worldenv.worlds.composer.contact import Scene, Touch, follow
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
        places, self.hidden, self.doubt, self.frame, *_ = follow(
            self.network, self.layer, self.frame, poses, CAMERA, SCENE
        )
        layer, tips = self.layer, torch.cat([poses[:, :1, :3], poses[..., :3]], dim=1)
        places_all = torch.cat([layer.thing.origin[:, None], places], dim=1)
        plate = patchify(SCENE.plate[None, None])[0, :, :, 0]
        known = self.first, self.frame, layer.scene(CAMERA, SCENE.plate), layer.thing.mask, self.hidden
        self.known = known_pictures(*known, tips, places_all, CAMERA[:, None], plate)
        self.frame = to_frames(self.known[:, :, :, 1 + 2 * K : 1 + 3 * K])[:, -1]
        return places


def share_of(frame, colour):  # [SIDE, SIDE]: how much of each pixel has the colour
    axis = colour - GREY
    return ((frame[0].float() - GREY) @ axis / axis.square().sum()).clamp(0, 1)


def seen_at(frame, colour, point):  # area in px of the colour within 4 cm of the point
    return (share_of(frame, colour) * (disk(point, 0.04)[0] > 0)).sum().item()


def smaller(here, there):  # how much smaller the area of a thing is there than here
    depths = [project(torch.tensor([point]), CAMERA)[1].item() for point in (here, there)]
    return (depths[0] / depths[1]) ** 2


def carry_low(imagination, begin, end):
    imagination.go(way(begin, begin, OPEN, CLOSED), True, begin)
    imagination.go(way(begin, end, CLOSED))
    imagination.go(way(end, end, CLOSED, OPEN))  # let go
