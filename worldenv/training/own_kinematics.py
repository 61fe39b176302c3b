"""Kinematics fitted to a run's own episodes.

For the scenes and motions of a run they are more accurate than the suite's, which were fitted to others.
"""

import sys

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.robot.fit import fit_kinematics
from worldenv.robot.fit_correction import with_correction
from worldenv.robot.fitted import FittedKinematics


def fit_own(clips: Clips, otherwise: FittedKinematics) -> FittedKinematics:
    """Kinematics fitted to these clips, whose actions were carried out: by place if the clips suffice for it, and with
    a correction if they suffice for that too and it helps.

    If they do not suffice for any fit, `otherwise`; a line on stderr says why.
    """
    rows = zip(clips.proprio, clips.actions, clips.length.tolist(), strict=True)
    episodes = [(proprio[: length + 1].numpy(), actions[:length].numpy()) for proprio, actions, length in rows]
    for by_place in (True, False):
        try:
            return with_correction(fit_kinematics(episodes, by_place), episodes)
        except UserError as error:
            reason = error
    print(f"kinematics: not fitted to this run's episodes, those of the suite stay: {reason}", file=sys.stderr)
    return otherwise
