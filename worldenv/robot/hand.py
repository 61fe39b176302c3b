"""What is fixed to the hand: cameras, which move as the robot moves, and the gripper as the action map draws it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worldenv.ops.constants import constant
from worldenv.robot.kinematics import composed, rotation
from worldenv.robot.robot import Robot


def drawn_poses(poses: Tensor, robot: Robot) -> Tensor:  # [..., P] float32 -> [..., P]
    """The poses with the axes that the action map draws: the hand's, turned by `gripper_turn` of the robot."""
    if robot.gripper_turn is None:
        return poses
    turn = constant(robot.gripper_turn, poses).expand_as(poses[..., 3:6])
    return torch.cat([poses[..., :3], composed(poses[..., 3:6], turn), poses[..., 6:]], dim=-1)


def cameras_after(
    camera: Tensor | None,  # [B, V, 3, 4] float32, world point (m) -> homogeneous pixel, where the robot is at `pose`
    pose: Tensor,  # [B, P] float32, begins with x, y, z (m), axis-angle (rad) of the hand
    poses: Tensor,  # [B, K, P] float32
    views: Sequence[str],  # V
    hand_views: Sequence[str],  # of these the camera is fixed to the hand
) -> Tensor | None:  # [B, K, V, 3, 4] float32; None: no camera is known, or all stand still
    """The cameras when the robot has come to other poses.

        camera_k = camera T(pose) T(poses_k)^-1         T: the hand's coordinates to the world's, 4 x 4

    So the place of a camera on the hand need not be known: the present camera and pose tell it. Computed in float64.
    """
    on_hand = [view in hand_views for view in views]
    if camera is None or not any(on_hand):
        return None
    now, then = rotation(pose[..., 3:6]), rotation(poses[..., 3:6])  # [B, 3, 3], [B, K, 3, 3]
    seen = camera.double()
    turned = (seen[..., :3] @ now[:, None])[:, None] @ then[:, :, None].transpose(-1, -2)  # [B, K, V, 3, 3]
    at_hand = (seen[..., :3] @ pose[:, None, :3, None].double()) + seen[..., 3:]  # [B, V, 3, 1], where it sees the hand
    moved = torch.cat([turned, at_hand[:, None] - turned @ poses[:, :, None, :3, None].double()], dim=-1)
    is_moved = constant(tuple(map(float, on_hand)), seen)[:, None, None] > 0
    return torch.where(is_moved, moved, seen[:, None]).to(camera.dtype)
