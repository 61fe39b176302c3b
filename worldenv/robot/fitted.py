"""How an action moves a gripper whose arm lags behind: a linear model, fitted to recordings (worldenv/robot/fit.py)."""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.fields import ADDED, shown
from worldenv.ops.constants import constant
from worldenv.robot.kinematics import NUMBERS, check_sizes, composed, is_number

Matrix = tuple[tuple[float, ...], ...]  # [7, 7 or 28]: row, of the move; column, of what causes it
Reach = tuple[tuple[float, ...], tuple[float, ...]]  # m: least and greatest x, y, z
BENT = 6  # numbers of a move that a correction may change: all but the opening
AT_ONCE = 32  # numbers that torch's SiLU computes together: of whole ones, a row does not depend on the other rows
Network = tuple[Matrix, Matrix, Matrix]  # [hidden, 19], [hidden, hidden + 1], [6, hidden + 1]: last columns are biases


@dataclass(frozen=True)
class FittedKinematics:
    """A gripper that is moved by 7-D deltas, by an arm that follows late and coasts.

        move  = step u + coast                      u: the action in [-1, 1], its last number 1 (open) or -1 (close)
        pose  <- pose + move                        the rotation by a turn about the world's axes, as "compose" of
        coast <- inertia move + after u + drift     `Kinematics`; the opening stays in its range, and move says so

    Poses are x, y, z (m), axis-angle (rad), opening. `coast` [..., 7] is the state of the motion: what the next move
    will be without an action.

    With `reach`, a box of positions, step, after, inertia and drift are linear in the position. They have four blocks
    of 7 columns: the values at the centre of the box, then their change per metre in x, in y and in z. Outside the box,
    the values at its nearest point hold.

    With `correction`, a small network adds to every move what the linear model leaves out, except of the opening. It
    reads the first six numbers of action, coast and pose, its two hidden layers go through SiLU, and what it adds to
    each number of a move is limited to `most`.

    Raises UserError if the numbers are not finite or not as many, if a range is empty, if a motion would grow by itself
    (an eigenvalue of inertia is 1 or more, with `reach` on a grid of 27 positions; the correction is not asked), or if
    repeat is not a positive integer.
    """

    step: Matrix  # what a unit of action moves at once: m, rad, opening
    after: Matrix  # what of it follows with the next action
    inertia: Matrix  # what of a move follows with the next action
    drift: tuple[float, ...]  # [7 or 28], what moves by itself
    opening: tuple[float, float]  # least and greatest
    repeat: int = field(default=1, metadata=ADDED)  # how often each action is carried out; all above are for once
    reach: Reach | None = field(default=None, metadata=ADDED)  # None: the same everywhere
    correction: Network | None = field(default=None, metadata=ADDED)  # None: nothing is added
    most: tuple[float, ...] | None = field(default=None, metadata=ADDED)  # [6] m, rad; with a correction only

    def __post_init__(self) -> None:
        columns = NUMBERS * (1 if self.reach is None else 4)
        for name in ("step", "after", "inertia"):
            object.__setattr__(self, name, _checked(name, getattr(self, name), (NUMBERS, columns)))
        object.__setattr__(self, "drift", _checked("drift", self.drift, (columns,)))
        object.__setattr__(self, "opening", _checked("opening", self.opening, (2,)))
        if not self.opening[0] < self.opening[1]:
            raise UserError(f"opening is {self.opening}; the least should be below the greatest")
        if isinstance(self.repeat, bool) or not isinstance(self.repeat, int) or self.repeat < 1:
            raise UserError(f"repeat of the kinematics is {shown(self.repeat)}; it should be a positive integer")
        if self.reach is not None:
            object.__setattr__(self, "reach", _checked("reach", self.reach, (2, 3)))
            if not all(low < high for low, high in zip(*self.reach, strict=True)):
                raise UserError(f"reach of the kinematics is {self.reach}; the least x, y, z should be below the rest")
        if (growth := self._growth()) >= 1:
            raise UserError(f"inertia makes a motion grow by itself, by {growth:.2f} with each action; it should fade")
        self._check_correction()

    def _check_correction(self) -> None:
        if (self.correction is None) != (self.most is None):
            raise UserError("the kinematics have one of correction and most; they should have both or neither")
        if self.correction is None:
            return
        if not isinstance(self.correction, tuple | list) or len(self.correction) != 3:
            raise UserError(f"correction of the kinematics is {shown(self.correction)}; it should be three matrices")
        first = self.correction[0]
        hidden = len(first) if isinstance(first, tuple | list) else 0
        if hidden % AT_ONCE:
            raise UserError(
                f"correction of the kinematics has {hidden} hidden units; they should be a multiple of {AT_ONCE}"
            )
        shapes = (hidden, 3 * BENT + 1), (hidden, hidden + 1), (BENT, hidden + 1)
        layers = (_checked("correction", *pair) for pair in zip(self.correction, shapes, strict=True))
        object.__setattr__(self, "correction", tuple(layers))
        object.__setattr__(self, "most", _checked("most", self.most, (BENT,)))
        if min(self.most) < 0:
            raise UserError(f"most of the kinematics is {self.most}; no number of it should be negative")

    def rest(self, proprio: Tensor) -> Tensor:  # [..., 7] -> [..., 7] float32
        """The motion of an arm at rest, whose gripper was last told to go where it is nearer to: open or closed."""
        opens = proprio[..., 6:] > sum(self.opening) / 2
        idle = torch.cat([torch.zeros_like(proprio[..., :6]), torch.where(opens, 1.0, -1.0)], dim=-1)
        return self._coast(torch.zeros_like(proprio).double(), idle.double(), proprio).to(proprio.dtype)

    def after_move(
        self,
        before: Tensor,  # [..., 7] float32, the pose before the last action
        action: Tensor,  # [..., 7] float32, the last action
        proprio: Tensor,  # [..., 7] float32, the present pose
    ) -> Tensor:  # [..., 7] float32
        """The motion of an arm that has been seen to move; several repetitions are taken as even."""
        turn = composed(proprio[..., 3:6].double(), -before[..., 3:6].double(), torch.zeros_like(before[..., 3:6]))
        move = torch.cat([proprio[..., :3] - before[..., :3], turn, proprio[..., 6:] - before[..., 6:]], dim=-1)
        return self._coast(move.double() / self.repeat, commanded(action), proprio).to(proprio.dtype)

    def follow(
        self,
        proprio: Tensor,  # [..., 7] float32
        motion: Tensor,  # [..., 7] float32
        actions: Tensor,  # [..., K, 7] float32
        lowest: Tensor | None = None,  # [...] float32 m, the height at which something stops the gripper
    ) -> tuple[Tensor, Tensor]:  # [..., K, 7] float32, after each action; [..., 7] float32, after the last
        """Where a chunk of actions leads. Computed in float64, and rounded after each step, row by row.

        A move down ends at `lowest`; a gripper that is already lower does not move down.

        Raises ValueError if a pose or an action has another size.
        """
        check_sizes(proprio, actions)
        u, out = commanded(actions).repeat_interleave(self.repeat, dim=-2), []
        low, high = self.opening
        for push in u.unbind(-2):
            move, pose = self.move(push, motion, proprio), proprio.double()
            if self.correction is not None:
                move = move + self._corrected(push, motion, pose)
            if lowest is not None:
                least = (lowest.double() - pose[..., 2]).clamp(max=0.0)
                move = torch.cat([move[..., :2], torch.maximum(move[..., 2], least)[..., None], move[..., 3:]], dim=-1)
            opening = (pose[..., 6:] + move[..., 6:]).clamp(low, high)
            turned = composed(move[..., 3:6], pose[..., 3:6])
            made = torch.cat([move[..., :6], opening - pose[..., 6:]], dim=-1)
            proprio = torch.cat([pose[..., :3] + move[..., :3], turned, opening], dim=-1).to(proprio.dtype)
            motion = self._coast(made, push, proprio).to(proprio.dtype)
            out.append(proprio)
        return torch.stack(out[self.repeat - 1 :: self.repeat], dim=-2), motion

    def move(self, push: Tensor, motion: Tensor, proprio: Tensor) -> Tensor:  # [..., 7] each -> [..., 7] float64
        """The next move by the linear model alone. `push` is float64, an action as `commanded` returns it."""
        return _applied(self.step, push, self._place(proprio)) + motion

    def _corrected(self, push: Tensor, motion: Tensor, pose: Tensor) -> Tensor:  # [..., 7] each -> [..., 7] float64
        x = torch.cat([part[..., :BENT].double() for part in (push, motion, pose)], dim=-1)
        for number, layer in enumerate(self.correction):
            matrix = constant(layer, x)
            x = (matrix[:, :-1] * x[..., None, :]).sum(-1) + matrix[:, -1]  # row by row, as in _applied
            x = F.silu(x) if number < 2 else x
        most = constant(self.most, x)
        return F.pad(x.clamp(-most, most), (0, NUMBERS - BENT))

    def _coast(self, move: Tensor, action: Tensor, proprio: Tensor) -> Tensor:  # [..., 7] float64 each
        """The motion in a pose that this move and this action have led to."""
        place = self._place(proprio)
        drift = (constant(self.drift, move).unflatten(0, (-1, NUMBERS)) * place[..., None]).sum(-2)
        return _applied(self.inertia, move, place) + (_applied(self.after, action, place) + drift)

    def _place(self, proprio: Tensor) -> Tensor:  # [..., 7] -> [..., 1 or 4] float64, what columns are multiplied by
        one = torch.ones_like(proprio[..., :1], dtype=torch.float64)
        if self.reach is None:
            return one
        low, high = (constant(limit, one) for limit in self.reach)
        return torch.cat([one, proprio[..., :3].double().clamp(low, high) - (low + high) / 2], dim=-1)

    def _growth(self) -> float:
        """The largest factor by which a motion grows with each action: in the middle, at faces, edges and corners."""
        low, high = map(np.array, self.reach or ((), ()))
        away = np.array([(1.0, *sign) for sign in product((-1, 0, 1), repeat=len(low))])
        away[:, 1:] *= (high - low) / 2
        inertia = np.array(self.inertia).reshape(NUMBERS, -1, NUMBERS)
        return float(np.abs(np.linalg.eigvals(np.einsum("gp,mpn->gmn", away, inertia))).max())


def commanded(action: Tensor) -> Tensor:  # [..., 7] -> [..., 7] float64
    """An action as the arm takes it: limited to [-1, 1], the gripper 1 (open) or -1 (close)."""
    opening = 1.0 - 2.0 * (action[..., 6:] > 0).double()
    return torch.cat([action[..., :6].double().clamp(-1, 1), opening], dim=-1)


def _applied(matrix: Matrix, cause: Tensor, place: Tensor) -> Tensor:  # [..., 7], [..., P] float64 -> [..., 7]
    # Row by row: a product of matrices would be summed in another order for another number of rows.
    causes = (place[..., None] * cause[..., None, :]).flatten(-2)
    return (constant(matrix, causes) * causes[..., None, :]).sum(-1)


def _checked(name: str, values: object, shape: tuple[int, ...]) -> tuple:
    array = np.empty(0) if isinstance(values, str) else np.array(values, dtype=object)
    if array.shape != shape or not all(map(is_number, array.ravel())):
        raise UserError(f"{name} of the kinematics is {shown(values)}; it should be finite numbers {list(shape)}")
    return tuple(tuple(map(float, row)) if len(shape) == 2 else float(row) for row in array)
