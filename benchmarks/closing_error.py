"""How far is the imagined hand from the true one when it closes? Errors of the kinematics in a run's recorded episodes.

    python benchmarks/closing_error.py RUN

RUN is a run of worldenv-train --from-scratch with explored episodes (data/exploration and data/again). The kinematics
are those of its composer, which were fitted to these very episodes; if there is no composer yet, the suite's. Every
stretch of 8 actions begins with the recorded pose, but with the motion that results from imagining the episode from its
start. It is *closing* if the hand is open at first, begins to close within the stretch, and comes below LOW_M. The last
line of stdout is one JSON document: errors of the position in cm, and the mean deviation of x, y, z after 8 actions.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

from worldenv.assemble import outline
from worldenv.commands.saved import saved_config
from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.records.progress import table
from worldenv.records.run_folder import RunFolder
from worldenv.robot.robot import Robot
from worldenv.worlds.composer.world import ComposerWorld

STEPS = 8
OPEN, LOW_M = 0.9, 0.12  # opening at first; height of the place between the fingers


def deviations(clips: Clips, robot: Robot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every stretch: imagined less true position [M, STEPS, 3] (cm), its episode [M], whether it closes [M] bool."""
    pose, found, kinematics = clips.proprio[:, 0], [], robot.kinematics
    motion = kinematics.rest(pose)
    ahead = clips.proprio.unfold(1, STEPS + 1, 1).transpose(2, 3)  # [N, T - STEPS + 1, STEPS + 1, P]
    actions = clips.actions.unfold(1, STEPS, 1).transpose(2, 3)
    for step in range(actions.shape[1]):
        led, _ = kinematics.follow(clips.proprio[:, step], motion, actions[:, step])
        found.append(100 * (led - ahead[:, step, 1:])[..., :3])
        poses, motion = kinematics.follow(pose, motion, clips.actions[:, step : step + 1])
        pose = poses[:, 0]
    closes = (ahead[:, :, 0, 6] > OPEN) & (actions[..., -1] > 0).any(2) & (ahead[..., 2].amin(2) < LOW_M)
    whole = torch.arange(actions.shape[1]) <= clips.length[:, None] - STEPS
    episode = whole.nonzero()[:, 0]
    return torch.stack(found, dim=1)[whole].numpy(), episode.numpy(), closes[whole].numpy()


def summary(away: np.ndarray) -> dict:
    far = np.linalg.norm(away, axis=2).mean(0)
    after = {f"after_{n}": round(float(far[n - 1]), 2) for n in (2, 4, STEPS)}
    return {"stretches": len(away), **after, "deviation": [round(float(x), 2) for x in away[:, -1].mean(0)]}


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run of worldenv-train --from-scratch")
    given = parser.parse_args()
    try:
        robot = outline(saved_config(RunFolder(given.run)).suite).robot
        if (world := given.run / "models/composer.safetensors").exists():
            robot = ComposerWorld.load(world, robot).robot
        clips = Clips.open(given.run / "data" / name for name in ("exploration", "again"))
    except UserError as error:
        sys.exit(f"closing_error: {error}")
    away, episode, closes = deviations(clips, robot)
    names = np.array(clips.tasks)[episode]
    found = {"closing": summary(away[closes]), "other": summary(away[~closes])}
    found |= {name: summary(away[closes & (names == name)]) for name in dict.fromkeys(names)}
    lines = [(name[-60:], *(str(value) for value in one.values())) for name, one in found.items()]
    table("Position, imagined less true (cm)", ("stretches that", "number", "2", "4", "8", "x, y, z"), lines)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
