"""Where the hand can take a thing: across its width, at its rim, at its handle; what stands in the way counts."""

from dataclasses import dataclass

import numpy as np

from worldenv.suites.libero.expert_hand import angle_between, nearer, rotation
from worldenv.suites.libero.expert_shapes import Shapes

DOWN, UP = np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.0, 1.0])
WIDEST_M = 0.074  # that fits between the fingers
ABOVE_M = 0.008  # the middle between the fingers is at least so far above what a thing stands on
SAME_M = 0.004  # widths that differ less count as the same
WIDER_M = 0.012  # than the narrowest width, and still taken
FAR_M, STEEP, MOST = 0.70, 4.0, 0.6  # from so far on (m) the hand leans outwards, by so much (rad / m, rad)
COMING_M, ASIDE_M = 0.08, 0.12  # of the last motion to a grasp, straight down or leaning
RISES_M = (0.0, 0.05, 0.10)  # above its beginning, where the palm should be free, too
BLOCKED = 3.0  # what a point of the palm costs that is in something on the way
LEAN, HIGHER_M = 0.5, 0.006  # rad, away from the middle of a thing that something overhangs, and so much higher
# The open hand: its fingers and its palm. x: in which the fingers close, z: in which they point.
FINGERS = [
    (side * x, y, -z)
    for side in (-1, 1)
    for x in (0.036, 0.048, 0.058)
    for y in (-0.012, 0, 0.012)
    for z in np.arange(-0.004, 0.06, 0.012)
]
PALM = [(x, y, -z) for x in np.linspace(-0.105, 0.105, 9) for y in (-0.032, 0, 0.032) for z in (0.07, 0.10, 0.13)]
OPEN_HAND = np.array(FINGERS + PALM)  # [n, 3] m
CLOSED_HAND = np.array([(0, 0, 0), *PALM])


@dataclass(frozen=True)
class Grasp:
    """A place of the middle between the fingers (m), an orientation of the hand, and where it comes from."""

    place: np.ndarray  # [3]
    turn: np.ndarray  # [3, 3]
    upright: np.ndarray  # [3, 3], the same where nothing makes the hand lean
    before: np.ndarray  # [3]: from above to there, then straight to the place
    is_aside: bool = False  # whether the hand leans away from the middle of the thing


class Grasps:
    """Finds grasps for a hand that is at `home` (an orientation [3, 3]) when it rests, of an arm on `base` [3] (m)."""

    def __init__(self, shapes: Shapes, home: np.ndarray, base: np.ndarray):
        self.shapes, self.home, self.base = shapes, home, base

    def upright(self, closing: np.ndarray) -> np.ndarray:  # [2] -> [3, 3]
        """The hand that points down and closes in a horizontal direction: of both, the one nearer to home."""
        x = np.r_[closing / np.linalg.norm(closing), 0]
        return nearer(np.stack([x, np.cross(DOWN, x), DOWN], axis=1), self.home)

    def _from_home(self, turn: np.ndarray) -> float:
        return angle_between(turn, self.home)

    def leaning(self, turn: np.ndarray, place: np.ndarray) -> np.ndarray:
        """The same at a far place: an upright hand there would run the elbow into its stop."""
        reach = (place - self.base)[:2]
        length = np.linalg.norm(reach)
        far = length + max(0.0, place[2] - self.base[2] - 0.18) * 0.5
        lean = np.clip((far - FAR_M) * STEEP, 0, MOST)
        return turn if lean <= 0 else rotation(np.array([reach[1], -reach[0], 0]) / length, lean) @ turn

    def of(self, body: int, shift: np.ndarray | None = None) -> list[Grasp]:
        """Grasps of a thing, the best first; `shift` [3] (m) is where it will be put from where it is, if it matters.

        What would touch something there or here comes later; else what is narrow and near to home comes first.
        """
        points = self.shapes.points(body)
        found, rim = self._across(points), []
        if not found:
            rim, handle = self._rim(points), self._handle(points)[:3]
            found = rim + handle if _is_hollow(points) else handle + rim
        cost = [self._touched(grasp, body, shift) for grasp in found]
        if rim and min(cost):
            leaning = [self._aside(grasp, points) for grasp in rim]
            found, cost = found + leaning, cost + [self._touched(grasp, body, shift) for grasp in leaning]
        return [found[i] for i in sorted(range(len(found)), key=cost.__getitem__)]

    def _touched(self, grasp: Grasp, body: int, shift: np.ndarray | None) -> float:
        """How much of the hand is in something: at the grasp, on the way to it, and where the thing will be put."""
        hand, way = grasp.place + OPEN_HAND @ grasp.turn.T, grasp.before - grasp.place
        palm = hand[len(FINGERS) :]
        coming = np.concatenate([palm + 0.5 * way, *(palm + way + rise * UP for rise in RISES_M)])
        there = 0 if shift is None else self.shapes.hits(hand + shift, body)
        here = self.shapes.hits(hand, body, is_filled=True)
        return here + BLOCKED * self.shapes.hits(coming, body, is_filled=True) + 0.25 * there

    def _grasp(self, x: float, y: float, z: float, closing: np.ndarray) -> Grasp:
        place, upright = np.array([x, y, z]), self.upright(closing)
        return Grasp(place, self.leaning(upright, place), upright, place + COMING_M * UP)

    def _aside(self, grasp: Grasp, points: np.ndarray) -> Grasp:
        """The same, with the hand leaning away from the middle of the thing."""
        out = grasp.place[:2] - (points.min(0) + points.max(0))[:2] / 2
        lean = rotation(np.cross(UP, np.r_[out, 0] / np.linalg.norm(out)), LEAN)
        place = grasp.place + HIGHER_M * UP
        return Grasp(place, lean @ grasp.upright, grasp.upright, place + ASIDE_M * (lean @ UP), is_aside=True)

    def _across(self, points: np.ndarray) -> list[Grasp]:
        low, high = points.min(0), points.max(0)
        z = max(low[2] + ABOVE_M, high[2] - min(0.035, 0.6 * (high[2] - low[2])))
        found = []
        for angle in np.arange(0, np.pi, np.pi / 24):
            closing = np.array([np.cos(angle), np.sin(angle)])
            sideways = np.array([-closing[1], closing[0]])
            spans = [
                (points[:, :2] @ axis).min() / 2 + (points[:, :2] @ axis).max() / 2 for axis in (closing, sideways)
            ]
            if (width := np.ptp(points[:, :2] @ closing)) < WIDEST_M:
                found.append((width, self._grasp(*(closing * spans[0] + sideways * spans[1]), z, closing)))
        if not found:
            return []
        found.sort(key=lambda pair: pair[0])
        least = found[0][0]
        same = [grasp for width, grasp in found if width < least + SAME_M]
        wider = [grasp for width, grasp in found if least + SAME_M <= width < least + WIDER_M]
        return sorted(same, key=lambda grasp: self._from_home(grasp.upright)) + wider

    def _rim(self, points: np.ndarray) -> list[Grasp]:
        """The fingers straddle the wall of a bowl, plate or mug."""
        low, high = points.min(0), points.max(0)
        height, middle = high[2] - low[2], (low + high)[:2] / 2
        upper = points[points[:, 2] > high[2] - max(0.02, 0.35 * height)][:, :2] - middle
        z, found = max(low[2] + ABOVE_M, high[2] - min(0.022, 0.45 * height)), []
        away = np.linalg.norm(upper, axis=1)
        for angle in np.arange(0, 2 * np.pi, np.pi / 8):
            closing = np.array([np.cos(angle), np.sin(angle)])
            is_there = (upper @ closing > 0.85 * away) & (away > 0.02)
            if is_there.any():
                found.append(self._grasp(*(middle + closing * ((upper[is_there] @ closing).max() - 0.006)), z, closing))
        return sorted(found, key=lambda grasp: (round(self._from_home(grasp.upright), 1), grasp.place[0]))

    def _handle(self, points: np.ndarray) -> list[Grasp]:
        """A part that sticks out sideways and is thin enough to be pinched."""
        found = []
        for angle in np.arange(0, 2 * np.pi, np.pi / 12):
            out = np.array([np.cos(angle), np.sin(angle)])
            closing = np.array([-out[1], out[0]])
            far = points[:, :2] @ out
            end = points[far > far.max() - 0.022]
            width = np.ptp(end[:, :2] @ closing)
            if width < 0.035 and np.ptp(points[:, :2] @ closing) > 0.05 and len(end) >= 4:
                z = max(points[:, 2].min() + ABOVE_M, end[:, 2].max() - 0.025)
                found.append((width, self._grasp(*end[:, :2].mean(0), z, closing)))
        return [grasp for _, grasp in sorted(found, key=lambda pair: pair[0])]


def _is_hollow(points: np.ndarray) -> bool:
    """Whether it is a bowl, plate or mug: nothing of it is high up near its axis."""
    low, high = points.min(0), points.max(0)
    away = np.linalg.norm(points[:, :2] - (low + high)[:2] / 2, axis=1)
    return not np.any((away < 0.35 * away.max()) & (points[:, 2] > low[2] + 0.6 * (high[2] - low[2])))
