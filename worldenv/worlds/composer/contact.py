"""What the gripper does to things: a small network looks at the surroundings of the fingertips and decides."""

from collections.abc import Callable
from functools import partial
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.nn.int8 import AT_ONCE, Conv, by_rows
from worldenv.ops.action_map import rotated_axes
from worldenv.ops.constants import constant
from worldenv.ops.patchify import unit
from worldenv.robot.robot import Robot
from worldenv.worlds.composer.layer import (
    POSITION,
    SIZE,
    Layer,
    Thing,
    attempts,
    carried,
    holding,
    in_window,
    renewed,
    rows_with,
    undecided,
    unwindow,
    window,
    window_offsets,
)

WIDTHS, CONDITION, HIDDEN = (32, 48, 64, 96), 96, 256  # channels, at 1 to 1/8 of the window
COLOURS = 6  # channels of a view: present frame, clear frame with the layer where it is now; then come others
FINGER_PX, FINGER_HIGH_M = 1.2, 0.1  # fingertips in a view: standard deviation, height above ground of the faintest
POSE = 7  # numbers of a pose that are read
REST_SCALE = 30.0  # of what the network says in metres
FREE_M = 0.02  # below the lowest planned height: where an untrained network says that the gripper is stopped
GRASPED_WEIGHT = 4.0  # in training, of grasps against misses, of which there are five times as many
STILL_M = 0.0015  # a layer that has moved less is not shown to the network: before a thing moves there is no layer
# The logits of grasps are divided by the first, because they are overconfident; the second is the rate at which doubt
# grows with every metre of a push. Found on 1,200 starts of the tabletop suite (benchmarks/LOG.md).
TEMPERATURE, DOUBT_PER_M = 2.0, 5.0
# A mask is resampled to a window and back, which blurs it. With more contrast it differs from the true mask by 3 % of
# its area instead of 13 %, and hardly any pixel of the thing is missing.
CONTRAST, DARKER = 2.5, 0.5
SAME_THING = 0.3  # if the layer covers more than this share of the moved thing, they are the same thing


class Touch(NamedTuple):
    """What the network says of B chunks."""

    moves: Tensor  # [B] logit: something is moved
    grasps: Tensor  # [B, K] logits: after this step the gripper holds something, if it closes
    rest: Tensor  # [B, K, 3] m: the thing's way after each step, less the way on which it is carried
    mask: Tensor  # [B, SIZE, SIZE] logits: the thing covers this pixel
    hidden: Tensor  # [B, K, SIZE, SIZE] logits: after this step, nearer things hide what the thing covers of this pixel
    pushes: Tensor  # [B] logit: the thing that is moved pushes another one
    pushed: Tensor  # [B, 3] m: the other thing's displacement at the end of the chunk
    pushed_mask: Tensor  # [B, SIZE, SIZE] logits: the other thing covers this pixel
    stop: Tensor | None = None  # [B] m above the lowest planned height: something stops the gripper there
    opening: Tensor | None = None  # [B] at which a held thing stops the fingers


class Course(NamedTuple):
    """Where the layers of B episodes are during a chunk, and what is hidden of them."""

    places: Tensor  # [B, K + 1, 3] m, where the thing is now and after each action
    hidden: Tensor  # [B, K, H, W] uint8, what nearer things hide of the thing after each action; 255: all
    doubt: Tensor  # [B] in [0, 1], see `doubt_of`
    frame: Tensor  # [B, H, W, 3] uint8, the present one, with things that are pushed where they will be
    opening: Tensor  # [B, K], lower bound of the fingers' opening after each action; -inf: nothing is held


class Scene(NamedTuple):
    """What is the same in all episodes."""

    plate: Tensor  # [H, W, 3] float32 in [-1, 1], the picture of the empty scene
    robot: Robot  # with a gripper; all poses in this module are as `drawn_poses` returns them


Stopped = Callable[[Tensor], Tensor]  # heights (m) at which something stops the grippers [B] -> poses [B, K + 1, P]


class View(NamedTuple):
    """What the network sees of B chunks."""

    pictures: Tensor  # [B, channels(K), SIZE, SIZE] float32, colours in [-1, 1], others in [0, 1]
    numbers: Tensor  # [B, numbers(K)] float32
    centre: Tensor  # [B, 3] m, of the window
    covered: Tensor  # [B, SIZE, SIZE] float32, by the layer as it lies


def channels(chunk: int) -> int:
    """The channels of a view: colours, the mask of the layer, the fingertips before and after each action."""
    return COLOURS + 1 + chunk + 1


def numbers(chunk: int) -> int:
    """How many numbers describe the plan of a chunk."""
    return (chunk + 1) * POSE + chunk + 1 + 3


def look(
    layer: Layer,  # of B episodes
    frame: Tensor,  # [B, H, W, 3] uint8
    poses: Tensor,  # [B, K + 1, P] float32, the present one first
    camera: Tensor,  # [B, 3, 4]
    scene: Scene,
) -> View:
    """What there is to see before a chunk.

    The window lies where the fingers close first, or, if they do not, in the middle of their way.
    """
    closes, rows = attempts(poses), torch.arange(len(poses), device=poses.device)
    first = torch.where(closes.any(1), closes.float().argmax(1) + 1, 0)
    middle = (poses[:, 0, POSITION] + poses[:, -1, POSITION]) / 2
    is_grasp = closes.any(1) & ~layer.held
    centre = torch.where(is_grasp[:, None], poses[rows, first][:, POSITION], middle)
    thing = layer.thing
    mask = thing.mask.float() / 255 * _has_moved(thing)[:, None, None]
    was = F.max_pool2d(mask[:, None], 3, 1, 1)[:, 0, :, :, None] > 0.05
    clear = unit(layer.scene(camera, scene.plate))
    empty = window(torch.where(was, scene.plate, clear), camera, centre)
    cut_out = window(torch.cat([clear, mask[..., None]], dim=-1), camera, centre, (thing.origin, thing.place))
    covered = cut_out[:, 3:]
    now = torch.lerp(empty, cut_out[:, :3], covered)
    fingers = _fingers(poses, camera, centre, scene.robot)
    pictures = torch.cat([window(unit(frame), camera, centre), now, covered, fingers], dim=1)
    plan = [
        ((poses[..., POSITION] - centre[:, None]) * 20).flatten(1),
        poses[..., 6],
        closes.float(),
        (poses[..., 3:6] * 4).flatten(1),
        layer.held[:, None].float(),
        (centre - constant((0, 0, scene.robot.ground_m), centre)) * constant((5, 5, 20), centre),
    ]
    return View(pictures, torch.cat(plan, dim=1), centre, covered[:, 0])


def _fingers(poses: Tensor, camera: Tensor, centre: Tensor, robot: Robot) -> Tensor:  # [B, K + 1, SIZE, SIZE] in [0, 1]
    """Both fingertips in the window, at each pose; the lower, the brighter."""
    (b, steps), gripper = poses.shape[:2], robot.gripper
    turn = F.pad(poses[..., 3:6], (0, 0, 0, -steps % AT_ONCE))  # whole registers for each row, as `by_rows` makes them
    position, axis = poses[..., POSITION], rotated_axes(turn.flatten(0, 1))[0].unflatten(0, (b, -1))[:, :steps]
    reach = (gripper.tip_closed_m + gripper.tip_opening_m * poses[..., 6:7]) * axis
    offset, spots = window_offsets(poses.device), []
    for tip in (position + reach, position - reach):
        place = in_window(tip, camera, centre)
        squared = (offset - place[..., 0, None]).square()[:, :, None] + (offset - place[..., 1, None]).square()[
            ..., None
        ]
        spots.append(torch.exp(squared / (-2 * FINGER_PX**2)))
    brightness = (1 - (position[..., 2] - robot.ground_m) / FINGER_HIGH_M).clamp(0.1, 1)
    return torch.maximum(*spots) * brightness[..., None, None]


class Block(nn.Module):
    """A convolution, scaled and shifted by the condition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv = Conv(inputs, outputs, 3, stride, padding=1)
        self.modulate = nn.Linear(CONDITION, 2 * outputs)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[..., None, None].chunk(2, dim=1)
        return F.silu(self.conv(x) * (1 + scale) + shift)


class ContactNetwork(nn.Module):
    """Decides for a whole chunk and a whole thing: taken along or not. So no thing is torn, and none becomes two.

    The thing that is moved may push another one. That one is at its new place from the chunk's first frame on.
    """

    def __init__(self, chunk: int, stops: bool = False, held_open: bool = False):
        super().__init__()
        a, b, c, d = WIDTHS
        self.chunk, self.stops, self.held_open = chunk, stops, held_open
        self.plan = nn.Sequential(
            nn.Linear(numbers(chunk), CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU()
        )
        self.down = nn.ModuleList([Block(channels(chunk), a), Block(a, b, 2), Block(b, c, 2), Block(c, d, 2)])
        self.up = nn.ModuleList([Block(d + c, b), Block(2 * b, a)])
        self.masks = Conv(2 * a, 2 + chunk, 3, padding=1)
        self.decide = nn.Sequential(
            nn.Linear(d * (SIZE // 8) ** 2 + CONDITION, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, 5 + 4 * chunk + stops + held_open),
        )

    def forward(self, pictures: Tensor, plan: Tensor) -> Touch:
        condition, levels = self.plan(plan), []
        for block in self.down:
            pictures = block(pictures, condition)
            levels.append(pictures)
        said = self.decide(torch.cat([pictures.flatten(1), condition], dim=1))
        for block, level in zip(self.up, levels[-2:0:-1], strict=True):
            pictures = block(torch.cat([F.interpolate(pictures, scale_factor=2), level], dim=1), condition)
        masks = self.masks(torch.cat([F.interpolate(pictures, scale_factor=2), levels[0]], dim=1))
        moves, grasps, rest, pushes, pushed, stop, opening = said.split(
            (1, self.chunk, 3 * self.chunk, 1, 3, int(self.stops), int(self.held_open)), dim=1
        )
        rest = rest.unflatten(1, (self.chunk, 3)) / REST_SCALE
        mask, hidden, pushed_mask = masks.split((1, self.chunk, 1), dim=1)
        return Touch(
            moves[:, 0],
            grasps,
            rest,
            mask[:, 0],
            hidden,
            pushes[:, 0],
            pushed / REST_SCALE,
            pushed_mask[:, 0],
            stop[:, 0] / REST_SCALE - FREE_M if self.stops else None,
            opening[:, 0] if self.held_open else None,
        )


def follow(
    network: ContactNetwork,
    layer: Layer,  # of B episodes, changed in place
    frame: Tensor,  # [B, H, W, 3] uint8
    poses: Tensor,  # [B, K + 1, P] float32, the present one first
    camera: Tensor,  # [B, 3, 4]
    scene: Scene,
    stopped: Stopped | None = None,
    threshold: Tensor | None = None,  # [B], `grasp_thresholds`; None: grasps with a logit above 0 succeed
) -> Course:
    """Predict the course of the layers in a chunk. Afterwards, `layer` is as at the end of the chunk.

    `poses` are planned: nothing stops the gripper on them. For a network with `stops`, `stopped` is called with the
    height at which something does, and returns the poses of the stopped gripper.
    """
    above = ~layer.held & (poses[:, 0, 2] > scene.robot.clear_m)
    layer.clear.copy_(torch.where(above[:, None, None, None], frame, layer.clear))
    for thing in (layer.thing, layer.other):
        thing.mask.mul_(~above[:, None, None])
    places = layer.thing.place[:, None].repeat(1, poses.shape[1], 1)
    near = (poses[:, :, 2].amin(1) < scene.robot.clear_m) | layer.held
    hidden = frame.new_zeros(len(places), poses.shape[1] - 1, *frame.shape[1:3])
    free = places.new_full(hidden.shape[:2], -torch.inf)
    course = Course(places, hidden, places.new_zeros(len(places)), frame.clone(), free)
    rows = rows_with(near)
    if len(rows):
        part, own = layer[rows], None if threshold is None else threshold[rows]
        lead = None if stopped is None else partial(_stopped_rows, stopped, rows, len(places))
        found = _touch(network, part, near[rows], frame[rows], poses[rows], camera[rows], scene, lead, own)
        for whole, some in zip(course, found, strict=True):
            whole[rows] = some
        layer.put(rows, part)
    return course


def grasp_thresholds(chance: Tensor) -> Tensor:  # [B] in [0, 1) -> [B]
    """Sampled thresholds: grasps with higher logits succeed. `chance` is uniform.

    So a grasp with the logit g succeeds with the probability sigmoid((g - log GRASPED_WEIGHT) / TEMPERATURE).
    """
    return log(GRASPED_WEIGHT) + TEMPERATURE * torch.logit(chance, eps=1e-6)


def _stopped_rows(stopped: Stopped, rows: Tensor, count: int, lowest: Tensor) -> Tensor:  # [M], ..., [M] -> [M, ...]
    """The poses of some of `count` episodes; nothing stops the others."""
    return stopped(lowest.new_full((count,), -torch.inf).index_copy(0, rows, lowest))[rows]


def _touch(
    network: ContactNetwork,
    layer: Layer,
    near: Tensor,
    frame: Tensor,
    poses: Tensor,
    camera: Tensor,
    scene: Scene,
    stopped: Stopped | None,
    threshold: Tensor | None,
) -> Course:
    view = look(layer, frame, poses, camera, scene)
    said = network(view.pictures, view.numbers)
    if stopped is not None:
        lowest = poses[:, 1:, 2].amin(1) + said.stop
        poses = stopped(torch.where(layer.held, -torch.inf, lowest))
    is_open = undecided(poses, layer.held) & near[:, None]
    grasps = said.grasps > (0.0 if threshold is None else threshold[:, None])
    held = holding(grasps & near[:, None], poses, layer.held)
    moves = ((said.moves > 0) | held.any(1)) & near
    is_new = moves & ~layer.held & (_common(said.mask.sigmoid(), view.covered) <= SAME_THING)
    pushes = (said.pushes > 0) & moves
    rows = rows_with(is_new | pushes)
    if len(rows):
        part, given = layer[rows], (view.centre[rows], camera[rows], scene.plate)
        _take(part, is_new[rows], said.mask[rows], *given)
        frame[rows] = _push(part, pushes[rows], said.pushed_mask[rows], said.pushed[rows], frame[rows], *given)
        layer.put(rows, part)
    way = carried(poses, held)
    way[:, 1:] += said.rest * moves[:, None, None]
    places = layer.thing.place[:, None] + way
    layer.thing.place.copy_(places[:, -1])
    hidden = _hidden(said.hidden, view.centre, camera, layer.thing.mask)
    opening = layer.opening if said.opening is None else torch.where(layer.held, layer.opening, said.opening)
    layer.opening.copy_(opening * held[:, -1])
    layer.held.copy_(held[:, -1])
    even = 0.0 if threshold is None else log(GRASPED_WEIGHT)  # the logit of a grasp that succeeds as often as not
    otherwise = torch.where(grasps, even - said.grasps, said.grasps - even)
    doubt = doubt_of(said, otherwise, is_open, moves & ~held.any(1), pushes)
    return Course(places, hidden, doubt, frame, torch.where(held[:, 1:], opening[:, None], -torch.inf))


def _hidden(logits: Tensor, centre: Tensor, camera: Tensor, mask: Tensor) -> Tensor:  # [B, K, H, W] uint8
    """What is hidden of the layers: the predictions in windows, resampled to pictures. 0 where there is no layer."""
    hides = (logits > 0).any(3).any(2).any(1) & (mask > 0).any(2).any(1)
    hidden, rows = mask.new_zeros(*logits.shape[:2], *mask.shape[1:]), rows_with(hides)
    if len(rows):
        pictures = _in_picture(logits[rows].sigmoid(), camera[rows], centre[rows], tuple(mask.shape[1:]))
        hidden[rows] = pictures * hides[rows, None, None, None]
    return hidden


def _in_picture(
    share: Tensor,  # [B, C, SIZE, SIZE]
    camera: Tensor,  # [B, 3, 4]
    centre: Tensor,  # [B, 3]
    size: tuple[int, int],  # H, W
) -> Tensor:  # [B, C, H, W] uint8
    """Shares of the pixels of a window, resampled to the picture; 255: all of a pixel."""
    share = unwindow(share, camera, centre, size) * CONTRAST - DARKER
    return (share.clamp(0, 1) * 255).round().to(torch.uint8)


def doubt_of(
    said: Touch,
    otherwise: Tensor,  # [B, K] logits of the grasps, of the outcome that did not come
    is_open: Tensor,  # [B, K] bool, whether a grasp was to be decided after each step
    is_pushed: Tensor,  # [B] bool, whether something is moved that is not held at any time
    pushes: Tensor,  # [B] bool, whether what is moved pushes another thing
) -> Tensor:  # [B] float32 in [0, 1]
    """How unsure it is that a chunk ends so: 1 - (1 - unsure) exp(-DOUBT_PER_M far).

    `unsure` is the chance that the least certain grasp comes out otherwise, at a temperature of TEMPERATURE. `far` is
    how far things are pushed by the chunk's end: the further, the less is known where they come to lie.
    """
    unsure = (by_rows(torch.sigmoid, otherwise / TEMPERATURE) * is_open).amax(1)
    far = said.rest[:, -1:].norm(dim=2) * is_pushed[:, None] + said.pushed.norm(dim=1, keepdim=True) * pushes[:, None]
    return 1 - (1 - unsure) * by_rows(torch.exp, -DOUBT_PER_M * far)[:, 0]


def _has_moved(thing: Thing) -> Tensor:  # [B] bool
    return (thing.place - thing.origin).norm(dim=1) > STILL_M


def _common(thing: Tensor, other: Tensor) -> Tensor:  # [B, SIZE, SIZE] each, shares of pixels -> [B]
    """The share of the first thing that the second covers."""
    return torch.minimum(thing, other).sum((1, 2)) / thing.sum((1, 2)).clamp(min=1)


def _seen(layer: Layer, logits: Tensor, centre: Tensor, camera: Tensor) -> tuple[Tensor, Thing]:
    """The thing that the network sees in windows: whether it is the layer's other thing [B], and if not, a new one."""
    share, other = logits.sigmoid(), layer.other
    covered = window(other.mask[..., None].float() / 255, camera, centre, (other.origin, other.place))[:, 0]
    mask = _in_picture(share[:, None], camera, centre, tuple(other.mask.shape[1:]))[:, 0]
    return _common(share, covered) > SAME_THING, Thing(mask, centre, centre)


def _leave(layer: Layer, where: Tensor, camera: Tensor, plate: Tensor) -> None:  # [B] bool
    """The other thing is left where it is, in the clear frame: another one takes its place in the layer."""
    layer.clear = torch.where(where[:, None, None, None], layer.scene(camera, plate), layer.clear)


def _take(layer: Layer, is_new: Tensor, logits: Tensor, centre: Tensor, camera: Tensor, plate: Tensor) -> None:
    """A thing is moved that is not the layer's: it becomes the layer's, and the one that was moved before the other."""
    is_other, seen = _seen(layer, logits, centre, camera)
    gives_way = is_new & (is_other | _has_moved(layer.thing))
    _leave(layer, gives_way & ~is_other, camera, plate)
    before, seen = layer.thing, layer.other.where(is_other, seen)
    layer.thing, layer.other = seen.where(is_new, before), before.where(gives_way, layer.other)


def _push(
    layer: Layer,
    pushes: Tensor,  # [B] bool
    logits: Tensor,  # [B, SIZE, SIZE], of `pushed_mask`
    way: Tensor,  # [B, 3] m
    frame: Tensor,  # [B, H, W, 3] uint8
    centre: Tensor,
    camera: Tensor,
    plate: Tensor,
) -> Tensor:  # [B, H, W, 3] uint8
    """The other thing is moved, in the layer and in the present frame, which is returned."""
    is_other, seen = _seen(layer, logits, centre, camera)
    is_new = pushes & ~is_other
    _leave(layer, is_new, camera, plate)
    layer.other = seen.where(is_new, layer.other)
    before = layer.scene(camera, plate)
    layer.other.place = layer.other.place + way * pushes[:, None]
    return renewed(frame, before, layer.scene(camera, plate))
