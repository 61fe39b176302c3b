"""What the contact network learns from: recorded chunks, and the same chunks tried again after an offset.

An offset: before the chunk is carried out, the gripper is moved a little (`Shiftable.beside`).

The network sees the poses to which the kinematics lead from the true pose before the chunk, as in imagination. The
labels say what the simulator did. Where a real arm lags or is stopped, the imagined pose is off from the true one, in
LIBERO by half a centimetre and more when the fingers close: enough to decide whether a grasp succeeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.true_things import TrueThings
from worldenv.records.checksum import checksum
from worldenv.records.progress import Progress
from worldenv.robot.hand import drawn_poses
from worldenv.robot.robot import Robot
from worldenv.training.layers import MOVED_M, LayerLabels, Layers
from worldenv.worlds.composer.contact import Scene, look
from worldenv.worlds.composer.layer import APERTURE, SIZE, Layer, Thing, attempts, carried, undecided, window

# Largest offset of the gripper in m: sideways, down, up; the share of offsets that go down or up.
BESIDE_M, LOWER_M, HIGHER_M, OTHER_HEIGHT = 0.03, 0.01, 0.025, 0.4
# The shares of four kinds of chunks that are used, as recorded and after an offset. 0: the gripper closes. 1: something
# moves close to another thing. 2: something moves elsewhere. 3: the rest. Of the chunks that begin with a held thing,
# only those of kind 1 are tried after an offset, if the held thing follows the gripper (`Shiftable.held_follows`).
SHARES, SHARES_BESIDE = (1.0, 1.0, 0.4, 0.15), (0.8, 0.8, 0.15, 0.05)
CLOSE_M = 0.08  # between the middles of two things that are close to each other
AT_ONCE = 1000
PICTURE_LEVELS = 100  # what 1.0 is stored as: pictures are int8
HIDDEN_LEVELS, UNKNOWN = 254, 255  # of `Contacts.hidden`: what 1.0 is stored as; no label
HEIGHT = 2  # of a pose: z
STOPPED_M = 0.004  # above the planned height: the gripper is stopped
PART = 0.2  # share of a pixel of a window above which a thing is in it


@dataclass
class Contacts(Slots):
    """M chunks of K actions: what the network sees before each, and its labels."""

    pictures: Tensor  # [M, C, S, S] int8, those of `View`, times PICTURE_LEVELS
    numbers: Tensor  # [M, ...] float32, those of `View`
    moves: Tensor  # [M] bool, whether something is moved
    closes: Tensor  # [M, K] bool, whether a grasp is still to be decided after each step
    grasps: Tensor  # [M, K] bool, whether the gripper holds something after each step
    rest: Tensor  # [M, K, 3] m, the thing's way after each step, less the way on which it was carried
    mask: Tensor  # [M, S, S] uint8, the thing before the chunk
    # [M, K, S, S] uint8, what nearer things hide, after each step, of the thing that is moved or, if none is, was moved
    # before; 254: all; UNKNOWN where the thing is not
    hidden: Tensor
    pushes: Tensor  # [M] bool, whether another thing is moved, too
    pushed: Tensor  # [M, 3] m, its displacement at the end of the chunk
    pushed_mask: Tensor  # [M, S, S] uint8, that thing before the chunk
    # [M] m above the lowest planned height: where the gripper was stopped; if it was not, the lowest height that it
    # reached; infinite if it holds something
    stop: Tensor
    is_stopped: Tensor  # [M] bool
    opening: Tensor  # [M] float32, of the fingers after the chunk; negative: they hold nothing


class _Hand(NamedTuple):
    """What N recorded episodes say about the hand besides the poses in `clips`."""

    motion: Tensor  # [N, T, ...] float32, before each action; empty [N, T, 0] if the kinematics have none
    opening: Tensor  # [N, T + 1] float32, of the fingers, which a held thing keeps open


class _Chunks(NamedTuple):
    """M chunks that were carried out, and where to find each of them in `things`."""

    frame: Tensor  # [M, H, W, 3] uint8, before each chunk
    poses: Tensor  # [M, K + 1, P] float32, of the simulator; the opening of the first one is the imagined one
    imagined: Tensor  # [M, K + 1, P] float32, the first of these poses, and those to which the kinematics lead
    things: TrueThings
    episode: np.ndarray  # [M], index of its episode
    step: np.ndarray  # [M], at which it begins in this episode


def record_contacts(
    clips: Clips,
    layers: Layers,
    scene: Scene,
    beside: int,  # at most so many tries of a chunk after an offset; above 0 only if `layers.things` is `Shiftable`
    seed: int,
    opening: Tensor | None = None,  # [N, T + 1] of the fingers, as recorded; None: that of `clips`
) -> Contacts:
    """Labelled chunks in which the gripper is below the robot's `clear_m` or holds something.

    A policy lifts when it sees that it holds something. So in recorded episodes the plan (the poses of the chunk) tells
    whether a grasp succeeded. After an offset the same plan is carried out whether the grasp succeeds or not, and half
    of the grasps miss.

    Raises UserError if there is no such chunk.
    """
    random, rows, offsets = np.random.default_rng(seed), [], []
    every, is_closing, is_close, is_moving, is_held = _chunks(clips, layers)
    kinds = np.select([is_closing, is_close, is_moving], [0, 1, 2], 3)
    is_tried = ~is_held | ((kinds == 1) & (beside > 0 and layers.things.held_follows))
    for round_ in range(1 + beside):
        share = np.array(SHARES_BESIDE)[kinds] * is_tried if round_ else np.array(SHARES)[kinds]
        rows.append(every[random.random(len(every)) < share])
        offsets.append(_offsets(random, len(rows[-1]) if round_ else 0))
    recorded, drawn, offset = len(rows[0]), np.concatenate(rows), np.concatenate(offsets)
    if not len(drawn):
        raise UserError(
            f"the contact network has nothing to learn from: in {len(every)} of the recorded chunks the gripper is "
            "near things or holds one, and none of these chunks was drawn; give a larger --scratch.exploration "
            "(between rounds: --refresh.episodes)"
        )
    # The simulator carries out each episode again for its tries. Task by task, it builds few scenes.
    again = drawn[recorded:, 0]
    by_episode = recorded + np.lexsort((again, np.unique(clips.tasks, return_inverse=True)[1][again]))
    order, whole = [(part, None) for part in _parts(np.arange(recorded))], None
    order += [(part, offset[part - recorded]) for part in _parts(by_episode)]
    hand = _Hand(_motions(clips, scene.robot), clips.proprio[..., APERTURE] if opening is None else opening)
    with Progress(len(drawn), "chunks for the contact network") as progress:
        for number, (part, own_offset) in enumerate(order):
            made = _kept(f"contacts_{number:05d}", clips, layers, scene, hand, drawn[part], own_offset)
            whole = whole or made.empty(len(drawn))  # filled in place: it takes gigabytes
            whole.put(torch.from_numpy(part), made)
            progress.advance(len(made))
    return whole


def _motions(clips: Clips, robot: Robot) -> Tensor:  # [N, T, ...] float32
    """The state of the motion before each action, as the last true move shows it; empty [N, T, 0] if there is none."""
    pose, actions = clips.proprio, clips.actions
    begun = robot.kinematics.rest(pose[:, 0])
    if begun is None:
        return pose[:, :-1, :0]
    later = robot.kinematics.after_move(pose[:, :-2], actions[:, :-1], pose[:, 1:-1])
    return torch.cat([begun[:, None], later], dim=1)


def _imagined(poses: Tensor, motion: Tensor, actions: Tensor, robot: Robot) -> Tensor:  # [M, K + 1, P]
    """The first pose, and those to which the kinematics lead from there."""
    led, _ = robot.kinematics.follow(poses[:, 0], motion if motion.shape[1] else None, actions)
    return torch.cat([poses[:, :1], led], dim=1)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    """At most AT_ONCE rows each."""
    return [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]


def _chunks(clips: Clips, layers: Layers) -> Iterator[np.ndarray]:
    """Of M chunks: (episode, step) [M, 2]; whether the gripper closes, something moves close to another thing,
    something moves, a thing is held at first."""
    k = layers.chunk
    ahead = clips.proprio.unfold(1, k + 1, 1)  # [N, T + 1 - K, P, K + 1]
    n, steps = ahead.shape[:2]
    held = torch.from_numpy(layers.held[:, :steps] >= 0)
    closes = attempts(ahead.transpose(2, 3).flatten(0, 1)).any(1).view(n, steps) & ~held
    whole = torch.arange(steps) <= clips.length[:, None] - k
    use = ((ahead[:, :, 2].amin(2) < layers.clear_m) | held) & whole
    rows, moves = use.nonzero(), layers.moves()[:, :steps][use]
    return (part.numpy() for part in (rows, closes[use], _close(layers, rows) & moves, moves, held[use]))


def _close(layers: Layers, rows: Tensor) -> Tensor:  # [M, 2] -> [M] bool
    """Whether the moved thing comes close to another one that can be moved."""
    (episode, step), row = rows.numpy().T, np.arange(len(rows))
    thing = layers.thing[episode, step]
    centre = layers.centre[episode[:, None], step[:, None] + np.arange(layers.chunk + 1)]  # [M, K + 1, D, 3]
    apart = np.linalg.norm(centre - centre[row, :, thing][:, :, None], axis=-1).min(1)
    apart[row, thing] = np.inf
    return torch.from_numpy(((apart < CLOSE_M) & layers.things.movable[episode]).any(1))


def _offsets(random: np.random.Generator, count: int) -> np.ndarray:  # [count, 3] m
    reach, angle = random.uniform(0, BESIDE_M, count), random.uniform(0, 2 * np.pi, count)
    height = random.uniform(-LOWER_M, HIGHER_M, count) * (random.random(count) < OTHER_HEIGHT)
    return np.stack([reach * np.cos(angle), reach * np.sin(angle), height], axis=1)


def _kept(
    name: str,
    clips: Clips,
    layers: Layers,
    scene: Scene,
    hand: _Hand,
    rows: np.ndarray,  # [M, 2]
    offset: np.ndarray | None,  # [M, 3] m
) -> Contacts:
    """What `_labelled` makes of these arguments, or made of them in a run that was interrupted."""
    parts = [column.name for column in fields(Contacts)]

    def make() -> dict[str, np.ndarray]:
        made = _labelled(clips, layers, scene, hand, rows, offset)
        return {part: getattr(made, part).numpy() for part in parts}

    robot = scene.robot.gripper, scene.robot.ground_m, scene.robot.gripper_turn
    (e, t), ahead = torch.from_numpy(rows).unbind(1), torch.arange(layers.chunk)
    actions = clips.actions[e[:, None], t[:, None] + ahead]
    poses = _imagined(clips.proprio[e, t][:, None], hand.motion[e, t], actions, scene.robot).numpy()
    opening = hand.opening[e[:, None], t[:, None] + ahead + 1].numpy()
    of = rows, np.full(3, np.nan) if offset is None else offset, scene.plate.numpy(), poses, opening
    found = replace(layers.kept, made_of=checksum([layers.kept.made_of, str(robot)], {})).arrays(name, make, *of)
    return Contacts(**{part: torch.from_numpy(found[part]) for part in parts})


def _labelled(
    clips: Clips,
    layers: Layers,
    scene: Scene,
    hand: _Hand,
    rows: np.ndarray,  # [M, 2], episode and step of chunks
    offset: np.ndarray | None,  # [M, 3] m; None: as recorded
) -> Contacts:
    """These chunks and their labels, of the simulator."""
    e, t = torch.from_numpy(rows).unbind(1)
    chunks = _carried_out(clips, layers, scene.robot, hand, rows, offset)
    things, own, now = chunks.things, chunks.episode, chunks.step
    steps, row = now[:, None] + np.arange(layers.chunk + 1), np.arange(len(rows))
    centre, held = things.centre[own[:, None], steps], things.held[own[:, None], steps]
    away = np.linalg.norm(centre - centre[:, :1], axis=-1).max(1) * things.movable[own]
    thing = np.where((held >= 0).any(1), held.max(1), away.argmax(1))
    moves = torch.from_numpy((away[row, thing] > MOVED_M) | (held >= 0).any(1))
    poses, holds = drawn_poses(chunks.imagined, scene.robot), torch.from_numpy(held >= 0)
    way = torch.from_numpy(centre[row, :, thing])
    rest = way - way[:, :1] - carried(chunks.poses, holds)  # what is held goes where the imagined gripper goes
    camera, label = clips.still_camera()[e, 0], layers.at(e, t)
    before, painted = _before(layers, label, rows, centre[:, 0], held[:, 0])
    clear = clips.frames_at(e, label.clear[:, None])[:, 0, 0]
    layer = Layer(clear, *before, holds[:, 0], torch.zeros(len(rows)))
    view = look(layer, chunks.frame, poses, camera, scene)
    painted = np.where(moves, thing, painted)
    return Contacts(
        (view.pictures * PICTURE_LEVELS).round().to(torch.int8),
        view.numbers,
        moves,
        undecided(poses, holds[:, 0]),
        holds[:, 1:],
        rest[:, 1:],
        _mask(chunks, thing, camera, view.centre),
        _hidden(chunks, painted, camera, view.centre, layers.chunk),
        *_pushed(chunks, centre, np.where(moves, thing, -1), camera, view.centre),
        *_stops(chunks, holds[:, 0]),
        torch.where(holds[:, -1], chunks.poses[:, -1, APERTURE], -1.0),
    )


def _stops(chunks: _Chunks, held: Tensor) -> tuple[Tensor, Tensor]:
    """The labels of `Contacts.stop` and `is_stopped`: where the true gripper stays above the planned one.

    With a held thing in the gripper, it may be that thing which is stopped: then the label is infinite, which asks for
    nothing.
    """
    planned, reached = (poses[:, 1:, HEIGHT] for poses in (chunks.imagined, chunks.poses))
    most, step = (reached - planned).max(1)
    is_stopped = (most > STOPPED_M) & ~held
    where = torch.where(is_stopped, reached.gather(1, step[:, None])[:, 0], reached.amin(1))
    return torch.where(held, torch.inf, where - planned.amin(1)), is_stopped


def _before(
    layers: Layers,
    label: LayerLabels,  # of M chunks
    rows: np.ndarray,  # [M, 2]
    now: np.ndarray,  # [M, D, 3] m, the middles of things before each chunk
    held: np.ndarray,  # [M], the thing that is held then; -1: none
) -> tuple[tuple[Thing, Thing], np.ndarray]:
    """The layer's things before each chunk, and which thing the first one is [M]; -1: none.

    The first one is held, or else has come farthest since the clear frame; the other one comes next. What the chunk
    will move must not count: the network would be told what it has to predict.
    """
    (episode, step), row = rows.T, np.arange(len(rows))
    begin = layers.clear[episode, step]
    was = layers.centre[episode, begin]
    away = np.linalg.norm(now - was, axis=-1) * layers.things.movable[episode]
    first = np.where(held >= 0, held, away.argmax(1))
    drawn = (layers.thing[episode, step], label.mask), (layers.other[episode, step], label.other_mask)

    def of(thing: np.ndarray) -> Thing:
        mask, left = torch.zeros_like(label.mask), away[row, thing] > MOVED_M
        for known, masks in drawn:
            same = left & (known == thing)
            mask[same], left = masks[same], left & ~same
        if left.any():
            mask[left] = torch.from_numpy(layers.things.coverage(episode[left], begin[left], thing[left]))
        return Thing(mask, torch.from_numpy(was[row, thing]), torch.from_numpy(now[row, thing]))

    one, is_moved = of(first), away[row, first] > MOVED_M
    away[row, first] = 0
    return (one, of(away.argmax(1))), np.where(is_moved, first, -1)


def _mask(chunks: _Chunks, thing: np.ndarray, camera: Tensor, centre: Tensor) -> Tensor:  # [M, SIZE, SIZE] uint8
    """The labels of `Contacts.mask`, and of `pushed_mask` with the other thing."""
    covered = torch.from_numpy(chunks.things.coverage(chunks.episode, chunks.step, thing))
    return window(covered[..., None].float(), camera, centre)[:, 0].round().to(torch.uint8)


def _pushed(
    chunks: _Chunks,
    places: np.ndarray,  # [M, K + 1, D, 3] m, the middles of things
    thing: np.ndarray,  # [M], -1: none
    camera: Tensor,  # [M, 3, 4]
    centre: Tensor,  # [M, 3]
) -> tuple[Tensor, Tensor, Tensor]:
    """The labels of `Contacts.pushes`, `pushed` and `pushed_mask`: of the other thing that comes farthest."""
    row, way = np.arange(len(thing)), places[:, -1] - places[:, 0]
    away = np.linalg.norm(way, axis=-1) * chunks.things.movable[chunks.episode]
    away[row, thing] = 0
    other = away.argmax(1)
    pushes = (away[row, other] > MOVED_M) & (thing >= 0)
    mask, some = torch.zeros(len(thing), SIZE, SIZE, dtype=torch.uint8), np.flatnonzero(pushes)
    if len(some):
        part = chunks._replace(episode=chunks.episode[some], step=chunks.step[some])
        mask[some] = _mask(part, other[some], camera[some], centre[some])
    return torch.from_numpy(pushes), torch.from_numpy(way[row, other] * pushes[:, None]), mask


def _carried_out(
    clips: Clips, layers: Layers, robot: Robot, hand: _Hand, rows: np.ndarray, offset: np.ndarray | None
) -> _Chunks:
    (episode, step), (e, t), ahead = rows.T, torch.from_numpy(rows).unbind(1), torch.arange(layers.chunk)
    actions = clips.actions[e[:, None], t[:, None] + ahead]
    if offset is None:
        poses = clips.proprio[e[:, None], t[:, None] + torch.arange(layers.chunk + 1)]
        poses[:, 1:, APERTURE] = hand.opening[e[:, None], t[:, None] + ahead + 1]
        frames = clips.frames_at(e, t[:, None])[:, 0, 0]
        return _Chunks(frames, poses, _imagined(poses, hand.motion[e, t], actions, robot), layers.things, episode, step)
    found = layers.things.beside(episode, step, offset, actions.numpy())
    poses = torch.from_numpy(found.poses)
    poses[:, 0, APERTURE] = clips.proprio[e, t, APERTURE]  # as predicted from the actions (`with_wanted_opening`)
    first = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
    imagined = _imagined(poses, hand.motion[e, t], actions, robot)
    return _Chunks(torch.from_numpy(found.frames), poses, imagined, found.things, *first)


def _hidden(
    chunks: _Chunks,
    thing: np.ndarray,  # [M], -1: none
    camera: Tensor,  # [M, 3, 4]
    centre: Tensor,  # [M, 3]
    k: int,
) -> Tensor:  # [M, K, SIZE, SIZE] uint8
    """The labels of `Contacts.hidden`."""
    rows = np.flatnonzero(thing >= 0)
    out = torch.full((len(thing), k, SIZE, SIZE), UNKNOWN, dtype=torch.uint8)
    if not len(rows):
        return out
    after = (chunks.step[rows, None] + np.arange(1, k + 1)).ravel()
    is_there, hidden = chunks.things.occlusion(chunks.episode[rows].repeat(k), after, thing[rows].repeat(k))
    pictures = torch.from_numpy(is_there).float(), torch.from_numpy(hidden) / 255
    at = camera[rows], centre[rows]
    there, hides = (window(part.unflatten(0, (-1, k)).movedim(1, 3), *at) for part in pictures)
    share = (HIDDEN_LEVELS * hides / there.clamp(min=PART)).round()
    out[rows] = torch.where(there > PART, share, UNKNOWN).to(torch.uint8)
    return out
