"""Kinematics that were fitted belong to the world model that was trained with them, and lie in its file."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from worldenv.errors import UserError
from worldenv.fields import from_document
from worldenv.records.checkpoint import CheckpointError
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.robot import Robot


def kept_kinematics(robot: Robot) -> dict[str, Any]:
    """What `save_model` writes of the robot beside the network: its kinematics, if they were fitted."""
    return {"kinematics": asdict(robot.kinematics)} if isinstance(robot.kinematics, FittedKinematics) else {}


def with_kept(path: Path, metadata: Mapping[str, Any], robot: Robot) -> Robot:
    """The robot with the kinematics in the metadata of a world model's file, if there are any.

    Raises CheckpointError if they are damaged.
    """
    if "kinematics" not in metadata:
        return robot
    try:
        return replace(robot, kinematics=from_document(FittedKinematics, metadata["kinematics"], "its kinematics"))
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
