"""LIBERO's robot, a Franka Panda: what it reports, its gripper as the action map draws it, and how actions move it."""

from dataclasses import replace
from math import pi, sqrt

from worldenv.ops.action_map import Gripper
from worldenv.robot.fitted import FittedKinematics
from worldenv.robot.robot import Robot
from worldenv.suites.libero.tasks import HEIGHTS_M

VIEWS = ("agentview", "wrist")
TURN = 6.2832  # rad
# Fitted to 16 episodes of four scenes (1,719 steps), the expert with noise and random actions, each carried out once.
# On four other scenes the hand is off by 0.24 cm (expert) and 0.35 cm (random) on average over a chunk of 8 actions, by
# 0.43 and 0.62 cm after it; more in docs/libero.md. Made by `python benchmarks/libero_kinematics.py`.
KINEMATICS = FittedKinematics(
    step=(
        (0.00469, -1e-05, -0.0001, 0.0001, -0.00905, 0.00051, 0.0),
        (-1e-05, 0.0056, 0.0, 0.00907, -0.00026, 0.00354, 0.0),
        (-0.0005, 0.0, 0.00578, -0.00031, -0.00809, 0.00016, 0.0),
        (0.00032, 0.00423, -6e-05, 0.0537, 0.00172, -0.00019, 0.0),
        (-0.00844, -9e-05, -0.00321, -0.00018, 0.04032, -0.0001, 0.0),
        (0.00027, 0.00375, -9e-05, -0.00376, 0.00128, 0.03918, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01799),
    ),
    after=(
        (0.00296, 2e-05, -0.00029, 0.0004, -0.00462, -0.00033, 0.0),
        (1e-05, 0.00344, 0.0, 0.00354, 0.00011, 0.00169, 0.0),
        (-0.00073, 0.00016, 0.00395, 0.00113, -0.00365, 0.00023, 0.0),
        (0.00028, 0.00113, 0.00051, 0.02598, 0.00029, 0.00233, 0.0),
        (-0.00348, -0.00036, -0.00047, -0.00048, 0.02287, 0.00017, 0.0),
        (-0.00058, -0.00166, -0.00077, 6e-05, 0.00046, -0.00287, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.02629),
    ),
    inertia=(
        (0.41438, -6e-05, 0.02584, -0.00626, 0.10987, 0.00042, 0.0),
        (-0.00163, 0.3137, -0.00019, -0.10069, 0.00046, -0.0335, 0.0),
        (0.08329, -0.01784, 0.2654, -0.00824, 0.09621, -0.00533, 0.0),
        (-0.04825, -0.37789, -0.03804, 0.38035, -0.0101, -0.00972, 0.0),
        (0.92061, 0.01856, 0.2756, 0.01094, 0.49063, -0.01786, 0.0),
        (0.00091, -0.14355, 0.05897, 0.05306, 0.00222, 0.51886, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.66032),
    ),
    drift=(-0.00012, 2e-05, 1e-05, -5e-05, 0.00013, -5e-05, 0.0),
    opening=(0.0274, 0.99881),
)


def panda(repeat: int, suite: str | None = None) -> Robot:
    """The Panda with kinematics for actions that are carried out `repeat` times, and the heights of a suite's scenes.

    For a suite without an entry in HEIGHTS_M, `clear_m` is None.
    """
    ground_m, clear_m = HEIGHTS_M.get(suite, (PANDA.ground_m, PANDA.clear_m))
    return replace(PANDA, kinematics=replace(KINEMATICS, repeat=repeat), ground_m=ground_m, clear_m=clear_m)


PANDA = Robot(
    ("x m", "y m", "z m", "rx rad", "ry rad", "rz rad", "opening"),
    ("dx", "dy", "dz", "drx", "dry", "drz", "close"),
    (-1.6, -1.0, -0.1, -TURN, -TURN, -TURN, 0.0),  # the reach of the arm, on the floor and on every table
    (0.7, 1.0, 2.2, TURN, TURN, TURN, 1.0),
    # robosuite's panda_gripper.xml, from the place that LIBERO reports of the fingers: their middles are 8.5 mm from it
    # when closed and slide by 4 cm along y of the hand; z points to the tips; a hand of Franka is 20 cm wide, and its
    # flange and the link before are above it.
    gripper=Gripper(tip_closed_m=0.0085, tip_opening_m=0.04, finger_m=0.039, hand_half_m=0.1, tool_m=0.2),
    gripper_turn=(pi / sqrt(2), pi / sqrt(2), 0.0),  # x to y, z to -z
    hand_views=VIEWS[1:],
)
