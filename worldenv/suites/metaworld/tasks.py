"""The tasks of Meta-World, with the sentences of its paper (arXiv 1910.10897), and the suites that are made of them."""

from dataclasses import dataclass
from math import pi

INSTRUCTIONS = {
    "assembly": "pick up a nut and place it onto a peg",
    "basketball": "dunk the basketball into the basket",
    "bin-picking": "grasp the puck from one bin and place it into another bin",
    "box-close": "grasp the cover and close the box with it",
    "button-press": "press a button",
    "button-press-topdown": "press a button from the top",
    "button-press-topdown-wall": "bypass a wall and press a button from the top",
    "button-press-wall": "bypass a wall and press a button",
    "coffee-button": "push a button on the coffee machine",
    "coffee-pull": "pull a mug from a coffee machine",
    "coffee-push": "push a mug under a coffee machine",
    "dial-turn": "rotate a dial 180 degrees",
    "disassemble": "pick a nut out of a peg",
    "door-close": "close a door with a revolving joint",
    "door-lock": "lock the door by rotating the lock clockwise",
    "door-open": "open a door with a revolving joint",
    "door-unlock": "unlock the door by rotating the lock counter-clockwise",
    "drawer-close": "push and close a drawer",
    "drawer-open": "open a drawer",
    "faucet-close": "rotate the faucet clockwise",
    "faucet-open": "rotate the faucet counter-clockwise",
    "hammer": "hammer a screw on the wall",
    "hand-insert": "insert the gripper into a hole",
    "handle-press": "press a handle down",
    "handle-press-side": "press a handle down sideways",
    "handle-pull": "pull a handle up",
    "handle-pull-side": "pull a handle up sideways",
    "lever-pull": "pull a lever down 90 degrees",
    "peg-insert-side": "insert a peg sideways",
    "peg-unplug-side": "unplug a peg sideways",
    "pick-out-of-hole": "pick up a puck from a hole",
    "pick-place": "pick and place a puck to a goal",
    "pick-place-wall": "pick a puck, bypass a wall and place the puck",
    "plate-slide": "slide a plate into a cabinet",
    "plate-slide-back": "get a plate from the cabinet",
    "plate-slide-back-side": "get a plate from the cabinet sideways",
    "plate-slide-side": "slide a plate into a cabinet sideways",
    "push": "push the puck to a goal",
    "push-back": "pull a puck to a goal",
    "push-wall": "bypass a wall and push a puck to a goal",
    "reach": "reach a goal position",
    "reach-wall": "bypass a wall and reach a goal",
    "shelf-place": "pick and place a puck onto a shelf",
    "soccer": "kick a soccer into the goal",
    "stick-pull": "grasp a stick and pull a box with the stick",
    "stick-push": "grasp a stick and push a box using the stick",
    "sweep": "sweep a puck off the table",
    "sweep-into": "sweep a puck into a hole",
    "window-close": "push and close a window",
    "window-open": "push and open a window",
}
# Short, solved by the expert with every action held for four steps, and not by its actions from another start.
THREE = ("button-press-topdown", "handle-press", "plate-slide")
# A dozen others, to pretrain on.
PRETRAINING = (
    *("reach", "push", "door-open", "door-unlock", "drawer-open", "window-close", "coffee-button"),
    *("faucet-open", "faucet-close", "sweep-into", "soccer", "hand-insert"),
)
MT10 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown"),
    *("peg-insert-side", "window-open", "window-close"),
)
TIP_M = (0.0, 0.0, -0.045)  # from the hand to the middle of the fingertips
TURN_RAD = (0.0, 0.0, pi / 2)  # axis-angle of the hand, which never turns: the fingers close along y
# Limits (m) of the place that the hand may be driven to: those of most tasks, and lower ends of others.
LOW_M, HIGH_M = (-0.5, 0.4, 0.05), (0.5, 1.0, 0.5)
OTHER_LOW_M = {
    **dict.fromkeys(
        ("door-lock", "door-unlock", "faucet-close", "faucet-open", "hand-insert", "lever-pull"), (-0.5, 0.4, -0.15)
    ),
    "bin-picking": (-0.5, 0.4, 0.07),
    "pick-out-of-hole": (-0.5, 0.4, -0.05),
    "stick-pull": (-0.5, 0.35, 0.05),
}
HORIZON_STEPS = 500  # of an episode of Meta-World
# Name of a suite -> its tasks, and the steps after which an episode ends.
SETS: dict[str, tuple[tuple[str, ...], int]] = {
    "metaworld": (THREE, 112),
    "metaworld_mt10": (MT10, HORIZON_STEPS),
    "metaworld_mt50": (tuple(INSTRUCTIONS), HORIZON_STEPS),
}


@dataclass(frozen=True)
class MetaWorldTask:
    """One task, by the name of its environment without the version."""

    name: str

    @property
    def instructions(self) -> tuple[str, ...]:
        return (INSTRUCTIONS[self.name],)

    @property
    def low_m(self) -> tuple[float, float, float]:
        """The lower limits of the place that the hand may be driven to; the upper ones are HIGH_M."""
        return OTHER_LOW_M.get(self.name, LOW_M)
