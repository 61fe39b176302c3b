"""How an action moves the gripper, s_{t+1} = FK(s_t, a_t): exact, without a network (World-Env, arXiv 2509.24948)."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.ops.constants import constant

NUMBERS = 7  # of a pose
Rotation = Literal["add", "compose", "fixed"]
TINY = 1e-300  # the least square of a length, so that it can be divided by


@dataclass(frozen=True)
class Kinematics:
    """Step sizes and limits of a gripper that is moved by 7-D deltas, as in LIBERO, or by 4-D ones, as in Meta-World.

    Raises UserError if `rotation` is another word, a step is not positive, or the limits are not six numbers in order.
    """

    translation_step: float = 0.035  # metres per unit action
    rotation_step: float = 0.12  # radians per unit action
    aperture_rate: float = 0.5  # opening per step, 0 closed .. 1 open
    low: tuple[float, ...] = (-0.19, -0.16, 0.008, -0.3, -0.3, -0.7)  # metres, radians
    high: tuple[float, ...] = (0.19, 0.21, 0.20, 0.3, 0.3, 0.7)
    # "compose": a turn about the world's axes, and no limits of it. "fixed": none; an action is dx, dy, dz, close.
    rotation: Rotation = "add"

    def __post_init__(self) -> None:
        if self.rotation not in get_args(Rotation):
            raise UserError(f"rotation is {self.rotation!r}; it should be one of {', '.join(get_args(Rotation))}")
        for name in ("translation_step", "rotation_step", "aperture_rate"):
            if not is_number(step := getattr(self, name)) or step <= 0:
                raise UserError(f"{name} is {step!r}; it should be positive and finite")
        for name in ("low", "high"):
            limits = getattr(self, name)
            if not isinstance(limits, tuple | list) or len(limits) != 6 or not all(map(is_number, limits)):
                raise UserError(f"{name} is {limits!r}; it should be six finite numbers, metres and radians")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise UserError(f"a lower limit of the gripper is above the upper one: {self.low} and {self.high}")

    @property
    def action_size(self) -> int:
        """A."""
        return 4 if self.rotation == "fixed" else NUMBERS

    def rest(self, proprio: Tensor) -> None:
        """No motion: this arm stands still when an action has been carried out."""
        return None

    def follow(self, proprio: Tensor, motion: None, actions: Tensor) -> tuple[Tensor, None]:
        """Where a chunk of actions leads, as `chunk_kinematics` says; and the motion, of which there is none."""
        return chunk_kinematics(proprio, actions, self), None

    def as_array(self) -> np.ndarray:  # [15] float64
        """The numbers in the order in which the compiled physics reads them. Raises ValueError unless it adds."""
        if self.rotation != "add":
            raise ValueError(f"rotation is {self.rotation!r}; the compiled simulator can only 'add'")
        steps = self.translation_step, self.rotation_step, self.aperture_rate
        return np.array([*steps, *self.low, *self.high], dtype=np.float64)


def check_sizes(proprio: Tensor, actions: Tensor, size: int = NUMBERS) -> None:
    """Raise ValueError unless a pose is of NUMBERS and an action of `size` numbers."""
    p, a = proprio.shape[-1], actions.shape[-1]
    if (p, a) != (NUMBERS, size):
        raise ValueError(f"proprio has {p} numbers and an action {a}; these kinematics are of {NUMBERS} and {size}")


def is_number(value: object) -> bool:
    """Whether a value is a finite real number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def forward_kinematics(
    proprio: Tensor,  # [..., 7] float32: xyz (m), axis-angle (rad), aperture [0, 1]
    action: Tensor,  # [..., A] float32, clipped to [-1, 1]
    kinematics: Kinematics,
) -> Tensor:  # [..., 7] float32
    """The proprioception after one action.

    pose     <- clip(pose + step * clip(action[:6], -1, 1), low, high)
    aperture <- moves towards 0 (action[6] > 0: close) or 1 (open) by at most `aperture_rate`

    With `rotation="fixed"` an action has four numbers, those of the position and the last.

    With `rotation="compose"` the position and the aperture move so, and the rotation by

        R <- exp(step * clip(action[3:6], -1, 1)) R, without limits

    Of the two axis-angles of R that are at most a whole turn long, w of at most half a turn and w - 2 pi w / |w|, it is
    the one that is nearer to the axis-angle before: the axis does not flip where a turn passes half a turn. Computed in
    float64 and rounded once.

    Raises ValueError if a pose or an action has another size.
    """
    return chunk_kinematics(proprio, action[..., None, :], kinematics)[..., 0, :]


def chunk_kinematics(
    proprio: Tensor,  # [..., 7] float32
    actions: Tensor,  # [..., K, A] float32
    kinematics: Kinematics,
) -> Tensor:  # [..., K, 7] float32, after each action
    """`forward_kinematics` applied K times. Raises ValueError as it does."""
    check_sizes(proprio, actions, kinematics.action_size)
    if kinematics.rotation == "fixed":
        actions = torch.cat([actions[..., :3], torch.zeros_like(actions[..., :3]), actions[..., 3:]], dim=-1)
    steps = (*[kinematics.translation_step] * 3, *[kinematics.rotation_step] * 3, kinematics.aperture_rate)
    step, low, high = constant((steps, (*kinematics.low, 0.0), (*kinematics.high, 1.0)), proprio).unbind(0)
    opening = 1.0 - 2.0 * (actions[..., 6:] > 0).to(proprio.dtype)
    moves = torch.cat([actions[..., :6].clamp(-1, 1), opening], dim=-1) * step
    out = []
    for move in moves.unbind(-2):
        moved = torch.clamp(proprio + move, low, high)
        if kinematics.rotation == "compose":
            turned = composed(move[..., 3:6], proprio[..., 3:6])
            moved = torch.cat([moved[..., :3], turned, moved[..., 6:]], dim=-1)
        proprio = moved
        out.append(proprio)
    return torch.stack(out, dim=-2)


def composed(turn: Tensor, before: Tensor, near: Tensor | None = None) -> Tensor:  # [..., 3] each, axis-angles
    """The turn after the one before, computed in float64; of two axis-angles the one nearer to `near` (`before`)."""
    previous = before.double()
    near = previous if near is None else near.double()
    (a, u), (b, v) = _quaternion(turn.double()), _quaternion(previous)
    scalar = a * b - (u * v).sum(-1, keepdim=True)
    vector = a * v + b * u + torch.linalg.cross(u, v)
    vector = torch.where(scalar < 0, -vector, vector)  # q and -q are the same turn: by at most half a turn
    length = _length(vector)
    angle = 2.0 * torch.atan2(length, scalar.abs())
    short = angle * vector / length
    long = short - 2.0 * math.pi * vector / length
    nearer = _length(long - near) < _length(short - near)
    return torch.where(nearer, long, short).to(before.dtype)


def rotation(axis_angle: Tensor) -> Tensor:  # [..., 3] rad -> [..., 3, 3] float64
    """The matrix of a turn."""
    scalar, vector = _quaternion(axis_angle.double())
    a, (x, y, z) = scalar[..., 0], vector.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - a * z), 2 * (x * z + a * y)),
        (2 * (x * y + a * z), 1 - 2 * (x * x + z * z), 2 * (y * z - a * x)),
        (2 * (x * z - a * y), 2 * (y * z + a * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _quaternion(axis_angle: Tensor) -> tuple[Tensor, Tensor]:  # [..., 3] -> [..., 1], [..., 3]
    angle = _length(axis_angle)
    return (0.5 * angle).cos(), (0.5 * angle).sin() / angle * axis_angle


def _length(vector: Tensor) -> Tensor:  # [..., 3] -> [..., 1]
    return vector.square().sum(-1, keepdim=True).clamp(min=TINY).sqrt()
