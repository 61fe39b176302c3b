"""How an action moves the gripper, s_{t+1} = FK(s_t, a_t): exact, without a network (World-Env, arXiv 2509.24948)."""

from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from worldenv.ops.constants import constant


@dataclass(frozen=True)
class Kinematics:
    """Step sizes and limits of a gripper that is moved by 7-D deltas, as in LIBERO."""

    translation_step: float = 0.035  # metres per unit action
    rotation_step: float = 0.12  # radians per unit action
    aperture_rate: float = 0.5  # opening per step, 0 closed .. 1 open
    low: tuple[float, ...] = (-0.19, -0.16, 0.008, -0.3, -0.3, -0.7)  # metres, radians
    high: tuple[float, ...] = (0.19, 0.21, 0.20, 0.3, 0.3, 0.7)

    def as_array(self) -> np.ndarray:  # [15] float64
        """The numbers in the order in which the compiled physics reads them."""
        steps, (low, high) = astuple(self)[:3], astuple(self)[3:]
        return np.array([*steps, *low, *high], dtype=np.float64)


def forward_kinematics(
    proprio: Tensor,  # [..., 7] float32: xyz (m), axis-angle (rad), aperture [0, 1]
    action: Tensor,  # [..., 7] float32, clipped to [-1, 1]
    kinematics: Kinematics,
) -> Tensor:  # [..., 7] float32
    """The proprioception after one action.

    pose     <- clip(pose + step * clip(action[:6], -1, 1), low, high)
    aperture <- moves towards 0 (action[6] > 0: close) or 1 (open) by at most `aperture_rate`
    """
    return chunk_kinematics(proprio, action[..., None, :], kinematics)[..., 0, :]


def chunk_kinematics(
    proprio: Tensor,  # [..., 7] float32
    actions: Tensor,  # [..., K, 7] float32
    kinematics: Kinematics,
) -> Tensor:  # [..., K, 7] float32, after each action
    """`forward_kinematics` applied K times."""
    steps = (*[kinematics.translation_step] * 3, *[kinematics.rotation_step] * 3, kinematics.aperture_rate)
    step, low, high = constant((steps, (*kinematics.low, 0.0), (*kinematics.high, 1.0)), proprio).unbind(0)
    opening = 1.0 - 2.0 * (actions[..., 6:] > 0).to(proprio.dtype)
    moves = torch.cat([actions[..., :6].clamp(-1, 1), opening], dim=-1) * step
    out = []
    for move in moves.unbind(-2):
        proprio = torch.clamp(proprio + move, low, high)
        out.append(proprio)
    return torch.stack(out, dim=-2)
