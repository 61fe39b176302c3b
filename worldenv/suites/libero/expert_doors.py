"""Skills of the scripted expert for what slides or turns: drawers, doors, knobs. All is read from the true state."""

from collections.abc import Callable, Collection
from typing import Any

import mujoco
import numpy as np

from worldenv.suites.libero.expert_grasps import CLOSED_HAND, DOWN, OPEN_HAND, UP, Grasps
from worldenv.suites.libero.expert_hand import Hand, nearer, rotation
from worldenv.suites.libero.expert_shapes import Shapes

RANGES = {name: f"default_{name}_ranges" for name in ("open", "close", "turnon", "turnoff")}
SLOPES = np.linspace(0.75, np.pi / 2, 10)  # rad from upright, of a hand that takes the handle of a drawer
PUSHING = np.linspace(0.4, 1.2, 9)  # rad from upright, of one that pushes a drawer
FINGER_M = 0.012  # half of what two closed fingers measure, a little more
BEYOND = 0.35  # rad that a knob is turned further than it has to be
ASIDE_M = 0.012  # by which the hand may miss a handle
SLIPPED_M = 0.03  # so far before a drawer, the hand has lost its handle
AHEAD_RAD, AHEAD_M = 0.35, 0.04  # the hand aims at so much further than the part is now


class Part:
    """What moves on one joint: a drawer, a door, a knob."""

    def __init__(self, env: Any, name: str):
        site = env.object_sites_dict.get(name)
        self.owner = name if site is None else site.parent_name
        owner = env.get_object(self.owner)
        joints = site.joints if site is not None else owner.joints
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.ranges = {} if owner is None else owner.object_properties.get("articulation", {})
        self.joint = env.sim.model.joint_name2id(joints[0]) if joints else None
        if self.joint is not None:
            self.body = int(self.model.jnt_bodyid[self.joint])
            self.slides = self.model.jnt_type[self.joint] == mujoco.mjtJoint.mjJNT_SLIDE

    @property
    def now(self) -> float:  # m or rad
        return float(self.data.qpos[self.model.jnt_qposadr[self.joint]])

    @property
    def axis(self) -> np.ndarray:  # [3] unit vector
        return self.data.xaxis[self.joint].copy()

    @property
    def hinge(self) -> np.ndarray:  # [3] m
        return self.data.xanchor[self.joint].copy()

    def towards(self, relation: str) -> float:
        """The sign of the joint's motion towards where the relation holds."""
        other = {"open": "close", "close": "open", "turnon": "turnoff", "turnoff": "turnon"}[relation]
        return float(np.sign(np.mean(self.ranges[RANGES[relation]]) - np.mean(self.ranges[RANGES[other]])))


class Doors:
    """Opens and closes drawers, closes doors, turns knobs; `holds` says whether a relation of the goal holds."""

    def __init__(self, env: Any, hand: Hand, shapes: Shapes, grasps: Grasps, holds: Callable[[tuple], bool]):
        self.env, self.hand, self.shapes, self.grasps, self.holds = env, hand, shapes, grasps, holds

    def can_open(self, name: str) -> bool:
        """Whether it is a drawer or a door."""
        part = Part(self.env, name)
        return part.joint is not None and RANGES["open"] in part.ranges

    def move(self, relation: str, name: str) -> str:
        """Bring about (relation, name); how it went."""
        part = Part(self.env, name)
        if part.joint is None or RANGES[relation] not in part.ranges:
            return "nothing there moves"
        if relation in ("turnon", "turnoff"):
            skill = self._turn
        elif part.slides:
            skill = self._pull if relation == "open" else self._push
        elif relation == "close":
            skill = self._shut
        else:
            return "no skill opens a door"
        skill(part, (relation, name))
        self._leave()
        return "done" if self.holds((relation, name)) else f"not {relation}"

    def _leave(self) -> None:
        self.hand.hold(-1.0, 4)
        back = -self.hand.turn[:, 2]
        self.hand.go(self.hand.place + 0.05 * back, self.hand.turn, near=0.015, steps=20)
        self.hand.go(self.hand.place + 0.12 * UP, None, near=0.03, steps=25)

    def _until(
        self, goal: tuple, turn: Callable, place: Callable, steps: int, speed: float, is_lost: Callable = lambda: False
    ) -> None:
        """Move after a place and an orientation that move, until the goal holds."""
        for _ in range(steps):
            if self.holds(goal) or is_lost():
                return
            self.hand.go(place(), turn(), near=0.0, steps=1, speed=speed)

    def _approach(self, place: np.ndarray, turn: np.ndarray, before: np.ndarray, without: Collection[str] = ()) -> None:
        """Over the things to `before` [3] (m), and from there to the place; not over those that are named."""
        top = self.shapes.corridor_top(self.hand.place, before, without) + 0.06
        high = max(before[2], min(top, before[2] + 0.2))
        if self.hand.place[2] < high - 0.03:
            self.hand.go(np.r_[self.hand.place[:2], high], None, near=0.03, steps=25)
        self.hand.go(np.r_[before[:2], high], turn, near=0.03, aligned=0.3)
        self.hand.go(before, turn, near=0.012, aligned=0.1, steps=60)
        self.hand.go(place, turn, near=0.006, steps=40, speed=0.6)

    def _bar(self, part: Part, out: np.ndarray) -> np.ndarray:  # [3] m
        """The middle of the handle of a drawer: of what sticks out furthest."""
        geoms = self.shapes.solid(part.body)
        return part.data.geom_xpos[geoms[np.argmax(part.data.geom_xpos[geoms] @ out)]].copy()

    def _tilted(self, out: np.ndarray, slope: float, is_along: bool) -> np.ndarray:  # [3, 3]
        """The hand before a drawer that comes out towards `out`: it closes across the handle, or along it."""
        pointing = np.cos(slope) * DOWN - np.sin(slope) * out
        closing = np.cross(UP, out) if is_along else np.sin(slope) * UP - np.cos(slope) * out
        return nearer(np.stack([closing, np.cross(pointing, closing), pointing], axis=1), self.hand.home)

    def _pull(self, part: Part, goal: tuple) -> None:
        out = part.axis * part.towards("open")
        bar, wanted = self._bar(part, out), part.ranges[RANGES["open"]]
        way = max(abs(value) for value in wanted) - abs(part.now)
        turns = [self._tilted(out, slope, is_along=False) for slope in SLOPES]

        def touched(turn: np.ndarray) -> int:
            hand = bar + OPEN_HAND @ turn.T
            near = sum(self.shapes.hits(hand + aside * UP) for aside in (-ASIDE_M, 0.0, ASIDE_M))
            return near + sum(self.shapes.hits(hand + share * way * out, part.body) for share in (0.5, 1.0))

        turn = min(turns, key=touched)
        self.hand.grip = -1.0
        self._approach(bar, turn, bar - 0.10 * turn[:, 2], (part.owner,))
        self.hand.hold(1.0, 9)
        begun, first = self.hand.place, part.now
        end = begun + (way + 0.01) * out

        def is_lost() -> bool:
            return (self.hand.place - begun) @ out - abs(part.now - first) > SLIPPED_M

        self._until(goal, lambda: turn, lambda: end, steps=70, speed=0.7, is_lost=is_lost)

    def _push(self, part: Part, goal: tuple) -> None:
        out = part.axis * part.towards("open")
        bar, way = self._bar(part, out), abs(part.now) + 0.01
        place = bar + (0.008 + FINGER_M) * out
        turns = [self._tilted(out, slope, is_along=True) for slope in PUSHING]
        turn = min(turns, key=lambda turn: self.shapes.hits(place - way * out + CLOSED_HAND @ turn.T, part.body))
        self.hand.grip = 1.0
        self._approach(place + 0.01 * out, turn, place + 0.07 * out)
        end = place - (way + 0.03) * out
        self._until(goal, lambda: turn, lambda: end, steps=80, speed=0.7)

    def _turn(self, part: Part, goal: tuple) -> None:
        """Take the far end of the knob's fin and lead it around the hinge."""
        points, hinge, axis, first = self.shapes.points(part.body), part.hinge, part.axis, part.now
        fin = points[points[:, 2] > np.mean([points[:, 2].min(), points[:, 2].max()])]
        angles = np.arange(0, np.pi, np.pi / 36)
        closing = min(
            (np.array([np.cos(angle), np.sin(angle), 0]) for angle in angles), key=lambda way: np.ptp(fin @ way)
        )
        along = np.cross(UP, closing)
        ends = [(fin - hinge) @ (side * along) for side in (1, -1)]
        side = 1 if ends[0].max() > ends[1].max() else -1
        lever = max(0.0, ((fin - hinge) @ (side * along)).max() - FINGER_M) * side * along
        middle = ((fin @ closing).min() + (fin @ closing).max()) / 2
        place = hinge + lever + (middle - hinge @ closing) * closing
        place[2] = points[:, 2].max() - 0.022
        turn, aim = self.grasps.upright(closing[:2]), self._wanted(part, goal[0])
        self.hand.grip = -1.0
        self._approach(place, turn, place + 0.07 * UP)
        self.hand.hold(1.0, 9)

        def led() -> np.ndarray:
            change = np.clip(aim - part.now, -AHEAD_RAD, AHEAD_RAD) + part.now - first
            return rotation(axis, change)

        self._until(goal, lambda: led() @ turn, lambda: hinge + led() @ (place - hinge), steps=80, speed=0.7)

    def _wanted(self, part: Part, relation: str) -> float:
        near = min(part.ranges[RANGES[relation]], key=lambda value: abs(value - part.now))
        return near + part.towards(relation) * BEYOND

    def _shut(self, part: Part, goal: tuple) -> None:
        """Push the outer face of a door around its hinge."""
        hinge, axis, sign = part.hinge, part.axis, part.towards("close")
        panel = max(self.shapes.solid(part.body), key=lambda geom: np.prod(part.model.geom_aabb[geom][3:]))
        widest = int(np.argmax(part.model.geom_size[panel]))  # of its own axes

        def sides() -> tuple[np.ndarray, np.ndarray, float]:
            """Along the door, against its way, and how far its face is from the hinge in that direction."""
            corners = self.shapes.corners(panel) - hinge
            along = part.data.geom_xmat[panel].reshape(3, 3)[:, widest]
            along = along * np.sign(corners.mean(0) @ along)
            outwards = -sign * np.cross(axis, along)
            return along, outwards, (corners @ outwards).max()

        corners = self.shapes.corners(panel)
        height = corners[:, 2].max() - 0.02
        radius = 0.65 * ((corners - hinge) @ sides()[0]).max()

        def beside(gap: float) -> np.ndarray:
            along, outwards, face = sides()
            place = hinge + radius * along + (face + gap) * outwards
            return np.r_[place[:2], height]

        self.hand.grip, turn = 1.0, self.hand.home
        self._approach(beside(0.04), turn, beside(0.06) + 0.15 * UP)
        self._until(goal, lambda: turn, lambda: beside(-AHEAD_M), steps=140, speed=0.8)
