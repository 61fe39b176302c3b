"""A smooth scripted expert for `tabletop`. It depends on the present state alone, so a policy can imitate it well."""

import numpy as np

from worldenv.suites.tabletop.physics import Tabletop
from worldenv.suites.tabletop.scenes import FAMILIES

_HOVER = 0.075  # metres above the table before a grasp
_CARRY = 0.085  # height of the fingertips while carrying
_SLOW = 0.7  # share of the way covered in one step: smooth arrivals
_FINGER = 0.007  # metres


def expert_action(env: Tabletop) -> np.ndarray:  # [E, 7] float32 in [-1, 1]
    """One action for each episode, from its true state."""
    state = env.state()
    return np.stack([_one(row, env.kinematics.translation_step, env.kinematics.rotation_step) for row in state])


def _one(row: np.ndarray, step: float, turn: float) -> np.ndarray:
    hand, held = row[:3], int(row[7])
    family, index, goal = FAMILIES[int(row[12])], int(row[13]), int(row[14])
    entities = row[15:].reshape(-1, 8)
    if family == "push":
        target, close = _push(hand, entities[index], entities[goal])
    elif held == index:
        target, close = _carry(hand, row[8:11], entities[index], entities[goal], family)
    else:
        target, close = _reach(hand, entities[index], entities[goal], family, row[6])
    action = np.zeros(7, dtype=np.float32)
    move = (target - hand) * _SLOW / step
    action[:3] = move / max(1.0, np.abs(move).max())
    action[3:6] = np.clip(-row[3:6] * _SLOW / turn, -1, 1)
    action[6] = 1.0 if close else -1.0
    return action


def _reach(
    hand: np.ndarray, item: np.ndarray, goal: np.ndarray, family: str, aperture: float
) -> tuple[np.ndarray, bool]:
    place = item[2:5]
    grip = place[2] + item[7] - 0.022
    away = np.hypot(*(hand[:2] - place[:2]))
    if family != "push" and _done(item, goal, family):
        return np.array([hand[0], hand[1], _CARRY + 0.02]), False
    if away > 0.011:
        height = max(_HOVER, grip + 0.035) if away > 0.03 or hand[2] > grip + 0.03 else hand[2]
        return np.array([place[0], place[1], height]), False
    arrived = abs(hand[2] - grip) < 0.008
    return np.array([place[0], place[1], grip]), arrived and away < 0.009


def _done(item: np.ndarray, goal: np.ndarray, family: str) -> bool:
    gap = np.hypot(*(item[2:4] - goal[2:4]))
    if family == "stack":
        return gap < 0.02 and abs(item[4] - goal[4] - goal[7]) < 0.003
    return gap < (0.03 if family == "place" else 0.05) and item[4] < 0.003


def _carry(
    hand: np.ndarray, offset: np.ndarray, item: np.ndarray, goal: np.ndarray, family: str
) -> tuple[np.ndarray, bool]:
    place = goal[2:4] - offset[:2]
    rest = goal[4] + goal[7] if family == "stack" else 0.0
    low = rest - offset[2]
    away = np.hypot(*(hand[:2] - place))
    lift = low + 0.04 if family == "stack" else max(low + 0.03, _CARRY - 0.03)
    if away > 0.012 and item[4] < rest + 0.02 and away > 0.03:
        return np.array([*(hand[:2] if item[4] < 0.02 else place), lift]), True
    if away > 0.012:
        return np.array([*place, max(lift, hand[2] if away < 0.03 else lift)]), True
    return np.array([*place, low + 0.001]), item[4] > rest + 0.004


def _push(hand: np.ndarray, item: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, bool]:
    place, radius = item[2:4], item[6]
    way = goal[2:4] - place
    left = np.hypot(*way)
    if left < 0.012:
        return np.array([*hand[:2], _CARRY]), True
    way = way / left
    behind = place - way * (radius + _FINGER + 0.016)
    ahead, side = (hand[:2] - place) @ way, (hand[:2] - place) @ np.array([-way[1], way[0]])
    if ahead > -radius * 0.8 or abs(side) > 0.02 + max(0.0, -ahead - radius - 0.03):
        clear = np.hypot(*(hand[:2] - place)) > radius + 0.022
        over = not clear or (hand[2] > 0.03 and np.hypot(*(hand[:2] - behind)) > 0.015)
        return np.array([*behind, 0.05 if over else 0.012]), True
    if hand[2] > 0.018:
        return np.array([*behind, 0.012]), True
    contact = place - way * (radius + _FINGER - 0.005) + way * min(left, 0.04)
    contact = contact - np.array([-way[1], way[0]]) * side * 0.6
    return np.array([*contact, 0.012]), True
