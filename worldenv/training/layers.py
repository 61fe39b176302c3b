"""What the gripper moves in recorded episodes: labels for composer and contact network, from the true things."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldenv import __version__
from worldenv.data.clips import Clips
from worldenv.interfaces.true_things import TrueThings
from worldenv.records.checksum import checksum
from worldenv.records.kept import NOT_KEPT, Kept
from worldenv.records.progress import Progress
from worldenv.robot.robot import Robot
from worldenv.worlds.composer.layer import APERTURE

MOVED_M = 0.0015  # a thing that moved less than this counts as not moved
AT_ONCE = 3000  # pictures that are drawn at a time: some minutes. The more, the fewer scenes are built
HIDDEN_LEVEL = 40  # of 255: if no pixel of a thing is hidden by more, the thing counts as not hidden


class LayerLabels(NamedTuple):
    """The layers of B chunks."""

    clear: Tensor  # [B] int64, the step whose frame is the clear one
    mask: Tensor  # [B, H, W] uint8, of the thing in that frame; all zero where nothing moves
    hidden: Tensor  # [B, K, H, W] uint8, what nearer things hide of the thing after each action; 255: all
    places: Tensor  # [B, K + 2, 3] float32 m, the thing's: in the clear frame, at the chunk's start, after each action
    other_mask: Tensor  # [B, H, W] uint8, in the clear frame, of the other thing that has been pushed since; or zero
    other_places: Tensor  # [B, 3, 3] float32 m, of that thing: in the clear frame, at the chunk's start, at its end


class Layers:
    """The layers of N recorded episodes, for chunks that begin at any step.

    As in imagination, the clear frame of a chunk is its first frame if the gripper is above everything and holds
    nothing, else the clear frame of the chunk before. The moved thing is the one that the gripper holds at any step of
    the chunk. If it holds none, it is the one whose distance from its place in the clear frame is largest at any step.
    The thing whose distance is largest among the rest is the other one: it was moved before, or has been pushed.
    """

    def __init__(
        self,
        proprio: Tensor,  # [N, T + 1, 7]
        things: TrueThings,  # of these episodes
        chunk: int,  # K
        clear_m: float,  # the robot's `clear_m`
        kept: Kept = NOT_KEPT,  # where what is drawn and labelled is kept
    ):
        n, steps = things.held.shape
        self.chunk, self.clear_m, self.things, self.kept = chunk, clear_m, things, kept
        self.centre, self.held = things.centre, things.held
        above, rows = proprio.numpy()[:, :, 2] > clear_m, np.arange(n)
        self.clear = np.zeros((n, steps), dtype=np.int64)
        self.thing, self.other = np.full((2, n, steps), -1)
        for t in range(steps):
            before = self.clear[:, t - chunk] if t >= chunk else 0
            self.clear[:, t] = np.where(above[:, t] & (self.held[:, t] < 0), t, before)
            away = self.centre[:, t : t + chunk + 1] - self.centre[rows, self.clear[:, t]][:, None]
            away = np.linalg.norm(away, axis=-1).max(1) * things.movable
            held = self.held[:, t : t + chunk + 1].max(1)
            thing = np.where(held >= 0, held, away.argmax(1))
            self.thing[:, t] = np.where(away.max(1) > MOVED_M, thing, -1)
            away[rows, thing] = 0
            self.other[:, t] = np.where(away.max(1) > MOVED_M, away.argmax(1), -1)
        self._draw()
        self._hide()

    def _draw(self) -> None:
        """Draw the mask of every (episode, step of the clear frame, thing) that occurs."""
        things = np.stack([self.thing, self.other])
        which, episode, step = np.nonzero(things >= 0)
        keys = np.stack([episode, self.clear[episode, step], things[which, episode, step]], axis=1)
        keys, row = np.unique(keys, axis=0, return_inverse=True)
        self.row = np.full(things.shape, -1)
        self.row[which, episode, step] = row.ravel()
        parts = _drawn(keys, lambda part: self.things.coverage(*part.T), "masks of moved things", self.kept)
        masks = [drawn for _, drawn in parts]
        self.masks = torch.from_numpy(np.concatenate([*masks, self._nothing()]))  # row -1 is empty

    def _hide(self) -> None:
        """Draw what nearer things hide of a moved thing after each action; keep the pictures that show any of it."""
        n, steps = self.thing.shape
        episode, step = np.nonzero(self.thing >= 0)
        after = (step[:, None] + np.arange(1, self.chunk + 1)).clip(max=steps - 1)
        keys = np.unique(self._key(episode[:, None], after, self.thing[episode, step][:, None]))
        shown, found = [np.empty(0, dtype=keys.dtype)], [self._nothing()]

        def draw(part: np.ndarray) -> np.ndarray:
            place, thing = np.divmod(part, self.centre.shape[2])
            return self.things.occlusion(place // steps, place % steps, thing)[1]

        for part, hidden in _drawn(keys, draw, "what hides moved things", self.kept):
            some = (hidden > HIDDEN_LEVEL).any((1, 2))
            shown.append(part[some])
            found.append(hidden[some])
        self.hidden_keys, self.hidden = np.concatenate(shown), torch.from_numpy(np.concatenate(found))

    def _nothing(self) -> np.ndarray:
        return np.zeros((1, *self.things.size), dtype=np.uint8)

    def _key(self, episode: np.ndarray, step: np.ndarray, thing: np.ndarray) -> np.ndarray:
        return (episode * self.thing.shape[1] + step) * self.centre.shape[2] + thing

    def moves(self) -> Tensor:  # [N, T + 1] bool
        """Whether the chunk that begins with a step has a layer."""
        return torch.from_numpy(self.thing >= 0)

    def at(self, episode: Tensor, step: Tensor) -> LayerLabels:  # [B], [B] int64
        e, t = episode.numpy(), step.numpy()
        clear, thing = self.clear[e, t], self.thing[e, t].clip(0)
        ahead = (t[:, None] + np.arange(self.chunk + 1)).clip(max=self.centre.shape[1] - 1)
        steps = np.concatenate([clear[:, None], ahead], axis=1)
        places = self.centre[e[:, None], steps, thing[:, None]]
        other_steps = np.stack([clear, t, ahead[:, -1]], axis=1)
        other_places = self.centre[e[:, None], other_steps, self.other[e, t, None].clip(0)]
        mask, other_mask = self.masks[torch.from_numpy(self.row[:, e, t])]
        keys = self._key(e[:, None], ahead[:, 1:], thing[:, None])
        row = np.searchsorted(self.hidden_keys, keys)
        is_kept = (np.append(self.hidden_keys, -1)[row] == keys) & (self.thing[e, t] >= 0)[:, None]
        hidden = self.hidden[torch.from_numpy(np.where(is_kept, row + 1, 0))]  # row 0 is empty
        places, other_places = torch.from_numpy(places), torch.from_numpy(other_places)
        return LayerLabels(torch.from_numpy(clear), mask, hidden, places, other_mask, other_places)


def _drawn(
    keys: np.ndarray,  # [M, ...], of pictures
    draw: Callable[[np.ndarray], np.ndarray],  # [m, ...] -> [m, H, W] uint8
    title: str,
    kept: Kept,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of the keys, each with its pictures. Every part is kept in a file of its own."""
    with Progress(len(keys), title) as progress:
        for number, first in enumerate(range(0, len(keys), AT_ONCE)):
            part = keys[first : first + AT_ONCE]
            name = f"{title.replace(' ', '_')}_{number:05d}"
            yield part, kept.arrays(name, lambda part=part: {"pictures": draw(part)}, part)["pictures"]
            progress.advance(len(part))


def made_of(clips: Clips, chunk: int, clear_m: float) -> str:
    """A checksum of all that the labels of these recorded episodes are made of, and by."""
    columns = {name: getattr(clips, name) for name in ("proprio", "actions", "length")}
    return checksum([__version__, clips.begun(), clips.frame_shape, chunk, clear_m], columns)


def with_wanted_opening(clips: Clips, robot: Robot) -> Clips:
    """The clips, with the recorded opening of the fingers replaced by the one that the robot's kinematics predict.

    In imagined poses, a thing between the fingers does not stop them from closing. In recorded poses it does, which
    would tell what learns from them that something was grasped.
    """
    first, proprio = clips.proprio[:, 0], clips.proprio.clone()
    poses, _ = robot.kinematics.follow(first, robot.kinematics.rest(first), clips.actions)
    opening = torch.cat([first[:, None], poses], dim=1)[:, :, APERTURE]
    own = torch.minimum(torch.arange(opening.shape[1]), clips.length[:, None])
    proprio[:, :, APERTURE] = opening.gather(1, own)
    return replace(clips, proprio=proprio)
