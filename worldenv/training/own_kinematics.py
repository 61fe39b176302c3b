"""Kinematics of a run's own: fitted to the episodes in which its policy acted."""

import sys
from dataclasses import replace

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.robot.fit import fit_kinematics
from worldenv.robot.robot import Robot


def refitted(robot: Robot, clips: Clips, tell: bool = True) -> Robot:
    """The robot with kinematics that vary with the place, fitted to these clips, whose actions were carried out.

    Of one scene and the motions of one policy, they are more accurate than kinematics for all scenes and motions of a
    benchmark. Where the clips are too few, or do not determine the fit, the robot stays as it is, and a line on stderr
    says so if `tell`.
    """
    rows = zip(clips.proprio, clips.actions, clips.length.tolist(), strict=True)
    episodes = [(proprio[: length + 1].numpy(), actions[:length].numpy()) for proprio, actions, length in rows]
    try:
        return replace(robot, kinematics=fit_kinematics(episodes, by_place=True))
    except UserError as error:
        if tell:
            print(f"kinematics: not fitted to this run's episodes, those of the suite stay: {error}", file=sys.stderr)
        return robot
