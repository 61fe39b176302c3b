"""What the numbers of a robot mean: sizes of action and proprioception, bounds, kinematics, gripper."""

from dataclasses import dataclass
from numbers import Real

from worldenv.errors import UserError
from worldenv.ops.action_map import Gripper
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.kinematics import Kinematics, is_number

KINDS = {str: "names", Real: "numbers"}
POSE = 6  # numbers: x, y, z, axis-angle


@dataclass(frozen=True)
class Robot:
    """A robot as policies and world models see it. Actions lie in [-1, 1].

    Raises UserError if bounds and names differ in number or are none, or a lower bound is above the upper one.
    """

    proprio: tuple[str, ...]  # P names, with the unit
    action: tuple[str, ...]  # A names
    low: tuple[float, ...]  # [P], the least that proprioception reports
    high: tuple[float, ...]  # [P], the greatest
    kinematics: Kinematics | FittedKinematics | None = None  # None: the world model imagines where an action leads
    gripper: Gripper | None = None  # its shape, for the action map; None: no action map is drawn
    hand_views: tuple[str, ...] = ()  # whose cameras are on the hand; proprioception begins with its pose
    # Axis-angle (rad) from the axes of the hand, as proprioception reports them, to those that the action map draws:
    # x along which the fingers close, z from the tips to the hand; None: they are the same.
    gripper_turn: tuple[float, float, float] | None = None
    ground_m: float = 0.0  # z (m) of the surface on which things stand
    clear_m: float | None = None  # z (m) above which the fingertips touch nothing that stands there; None: unknown

    def __post_init__(self) -> None:
        for name, kind in (("proprio", str), ("action", str), ("low", Real), ("high", Real)):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
                raise UserError(f"{name} of a robot is {values!r}; it should be a tuple of {KINDS[kind]}")
        if not isinstance(self.hand_views, tuple) or not all(isinstance(view, str) for view in self.hand_views):
            raise UserError(f"hand_views of a robot is {self.hand_views!r}; it should be a tuple of names of views")
        if self.hand_views and len(self.proprio) < POSE:
            raise UserError(
                f"cameras on the hand need its pose: proprioception has {len(self.proprio)} numbers; it should begin "
                f"with {POSE}, x, y, z (m) and axis-angle (rad)"
            )
        for name, kinds in (("kinematics", (Kinematics, FittedKinematics)), ("gripper", (Gripper,))):
            if not isinstance(value := getattr(self, name), (*kinds, type(None))):
                wanted = ", ".join(kind.__name__ for kind in kinds)
                raise UserError(f"{name} of a robot is a {type(value).__name__}; it should be a {wanted} or None")
        turn = self.gripper_turn
        if turn is not None and not (isinstance(turn, tuple) and len(turn) == 3 and all(map(is_number, turn))):
            raise UserError(
                f"gripper_turn of a robot is {turn!r}; it should be a tuple of three numbers (rad), or None"
            )
        if not is_number(self.ground_m) or not (self.clear_m is None or is_number(self.clear_m)):
            raise UserError(
                f"ground_m and clear_m of a robot are {self.ground_m!r} and {self.clear_m!r}; they should be numbers "
                "(heights in m); clear_m may be None"
            )
        if not len(self.proprio) == len(self.low) == len(self.high) or not self.action:
            raise UserError(
                f"a robot has {len(self.proprio)} names of proprioception, {len(self.low)} lower and {len(self.high)} "
                f"upper bounds and {len(self.action)} actions; the first three should be equal, and all positive"
            )
        if any(not low <= high for low, high in zip(self.low, self.high, strict=True)):
            raise UserError(f"a lower bound of proprioception is above the upper one: {self.low} and {self.high}")

    @property
    def proprio_size(self) -> int:
        """P."""
        return len(self.proprio)

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action)


def moved_gripper(kinematics: Kinematics, gripper: Gripper | None = None, clear_m: float | None = None) -> Robot:
    """A gripper that is moved by deltas: 7-D as in LIBERO and the embedded suite, 4-D where the hand does not turn."""
    turns = () if kinematics.rotation == "fixed" else ("drx", "dry", "drz")
    return Robot(
        ("x m", "y m", "z m", "rx rad", "ry rad", "rz rad", "opening"),
        ("dx", "dy", "dz", *turns, "close"),
        (*kinematics.low, 0.0),
        (*kinematics.high, 1.0),
        kinematics,
        gripper or Gripper(),
        clear_m=clear_m,
    )
