"""How far a gripper slides sideways while something stops it, fitted to recordings (`FittedKinematics.slide`)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from worldenv.robot.fit import Episode
from worldenv.robot.fitted import FittedKinematics

CHUNK = 4  # actions
STOPPED_M = 0.004  # above the height to which the kinematics lead: the gripper was stopped
LEAST_CHUNKS = 100  # in which it was: for fewer of them, nothing is fitted


def with_slide(kinematics: FittedKinematics, episodes: Sequence[Episode]) -> FittedKinematics:
    """The kinematics with a slide, by least squares over the chunks of 4 actions in which an open gripper was stopped:
    it ended or stayed more than 4 mm above the height to which the kinematics lead.

    If there are fewer than 100 such chunks, the kinematics are returned as they are. Episodes are as for
    `fit_kinematics`.
    """
    chunks = [_stopped(kinematics, *map(torch.from_numpy, e)) for e in episodes if len(e[1]) >= CHUNK]
    *given, reached = (torch.cat(part) for part in zip(*chunks, strict=True)) if chunks else [()]
    if len(reached) < LEAST_CHUNKS:
        return kinematics
    still, slid = (replace(kinematics, slide=slide).follow(*given)[0][:, -1, :2] for slide in ((0, 0), (1, 1)))
    way, left = (slid - still).double(), (reached - still).double()
    return replace(kinematics, slide=tuple(((way * left).sum(0) / way.square().sum(0).clamp(min=1e-12)).tolist()))


def _stopped(kinematics: FittedKinematics, proprio: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
    """Of an episode's M chunks in which an open gripper was stopped: pose [M, 7] and motion [M, 7] before, actions
    [M, 4, 7], the height at which it was stopped [M], and the x and y that it reached [M, 2]."""
    begun = kinematics.rest(proprio[:1])
    motion = torch.cat([begun, kinematics.after_move(proprio[:-2], actions[:-1], proprio[1:-1])])
    first = torch.arange(0, len(actions) - CHUNK + 1, CHUNK)
    poses, acted = proprio[first[:, None] + torch.arange(CHUNK + 1)], actions[first[:, None] + torch.arange(CHUNK)]
    led, _ = kinematics.follow(poses[:, 0], motion[first], acted)
    most, step = (poses[:, 1:, 2] - led[..., 2]).max(1)
    lowest = poses[:, 1:, 2].gather(1, step[:, None])[:, 0]
    rows = (most > STOPPED_M) & (poses[:, 0, 6] > sum(kinematics.opening) / 2)
    return poses[rows, 0], motion[first][rows], acted[rows], lowest[rows], poses[rows, -1, :2]
