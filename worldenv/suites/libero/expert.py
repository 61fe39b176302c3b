"""A scripted expert for LIBERO. It looks at the simulator's true state, and works off the goal of a task.

It works the relations of the goal off one after the other, each with several grasps if need be. What has to be open for
one is opened first.
"""

import mujoco
import numpy as np

from worldenv.suites.libero.expert_doors import Doors
from worldenv.suites.libero.expert_grasps import UP, Grasp, Grasps
from worldenv.suites.libero.expert_hand import Ended, Hand
from worldenv.suites.libero.expert_shapes import Shapes
from worldenv.suites.libero.goals import ORDER, Goal, beside, ordered
from worldenv.suites.libero.process import Acted
from worldenv.suites.libero.scene import Scene

ATTEMPTS = 3  # at one relation, each with the next grasp
APART_M = 0.012  # between things that are put beside each other
OVER_M = 0.12  # above all that a thing is carried over


def demonstrate(scene: Scene, horizon: int, noise: float, seed: int, look: bool) -> Acted:
    """Act out the episode that has just begun in the scene, and show it if it succeeds and somebody looks.

    The action that is recorded is the expert's. Where noise is not 0, another one is carried out: Laplace noise of a
    scale between 0 and `noise`, drawn from `seed`, which lasts for some actions.
    """
    hand, camera = Hand(scene, horizon, noise, seed), scene.camera()
    told = Expert(scene, hand).run()
    frames = scene.frames_of(hand.states) if look and any(hand.done) else None
    states, proprio, joints = (np.stack(part) for part in (hand.states, hand.proprio, hand.joints))
    return Acted(np.stack(hand.actions), np.array(hand.done), proprio, states, joints, camera, frames, told)


class Expert:
    """Acts in a scene until the goal holds, the actions are used up, or nothing helps."""

    def __init__(self, scene: Scene, hand: Hand):
        self.env, self.hand = scene.env, hand
        base = scene.env.sim.model.body_name2id("robot0_base")
        self.goals = ordered(scene.env.parsed_problem["goal_state"])
        self.shapes = Shapes(scene.env)
        self.grasps = Grasps(self.shapes, hand.home, self.shapes.data.xpos[base].copy())
        self.doors = Doors(scene.env, hand, self.shapes, self.grasps, self.holds)

    def holds(self, goal: Goal) -> bool:
        """Whether a relation holds now."""
        return bool(self.env._eval_predicate(list(goal)))

    def run(self) -> str:
        """Work off the goal; what was done, and how it went."""
        told = []
        try:
            for _ in range(2):  # a later relation may undo an earlier one
                for goal in self.goals:
                    for attempt in range(ATTEMPTS):
                        if self.holds(goal):
                            break
                        told.append(f"{' '.join(goal)}: begun")
                        told[-1] = f"{' '.join(goal)}: {self._work_off(goal, attempt)}"
            self.hand.hold(self.hand.grip, 1)
        except Ended:
            pass
        return "; ".join(told)

    def _work_off(self, goal: Goal, attempt: int) -> str:
        relation, name, *target = goal
        if relation not in ORDER:
            return "no skill"
        if not target:
            return self.doors.move(relation, name)
        if relation == "in" and target[0] in self.env.object_sites_dict:
            self._open_first(target[0])
        return self._put(relation, name, target[0], attempt)

    def _open_first(self, region: str) -> None:
        name = region if self._is_drawer(region) else self.env.object_sites_dict[region].parent_name
        for _ in range(ATTEMPTS):
            if self.doors.can_open(name) and not self.holds(("open", name)):
                self.doors.move("open", name)

    def _put(self, relation: str, name: str, target: str, attempt: int) -> str:
        """Take a thing, with another grasp in each attempt, and put it on or into something."""
        body, hand = self.shapes.body(name), self.hand
        spot = self._spot(relation, name, target)
        grasps = self.grasps.of(body, self._shift(body, spot) if self._is_drawer(target) else None)
        if not grasps:
            return "it has no part that the hand can take"
        grasp = grasps[attempt % len(grasps)]
        aside = (grasp.before - grasp.place)[:2] if grasp.is_aside else None
        out = np.r_[self.shapes.way_out(body, aside), 0]
        points, before = self.shapes.points(body), self.shapes.place(name)
        top = points[:, 2].max()
        self._take(grasp, top, name)
        if out.any():
            hand.go(grasp.place + out + 0.006 * UP, grasp.turn, near=0.012, steps=40, speed=0.5)
        over = max(spot[2], top) + OVER_M
        hand.go(np.r_[hand.place[:2], min(hand.place[2] + 0.12, over)], grasp.turn, near=0.02, steps=40, speed=0.8)
        if self.shapes.place(name)[2] < before[2] + 0.04:
            hand.hold(-1.0, 4)
            return "not grasped"
        spot = self._spot(relation, name, target)
        is_low = relation == "on" or self._is_drawer(target)
        return self._bring(grasp, name, before[2], spot, over, is_low)

    def _take(self, grasp: Grasp, top: float, name: str) -> None:
        """Come from over the neighbours, and close the fingers on a thing."""
        hand, turn = self.hand, grasp.turn
        hand.grip = -1.0
        around = self.shapes.corridor_top(hand.place, grasp.before, (name,)) + 0.05
        high = max(top + 0.10, min(around, top + 0.25))
        if hand.place[2] < high - 0.03:
            hand.go(np.r_[hand.place[:2], high], None, near=0.03, steps=25)
        hand.go(np.r_[grasp.before[:2], high], turn, near=0.025, aligned=0.15)
        hand.go(grasp.before, turn, near=0.012, aligned=0.08, steps=40)
        hand.go(grasp.place, turn, near=0.006, steps=40, speed=0.6)
        hand.hold(1.0, 9)

    def _bring(self, grasp: Grasp, name: str, before: float, spot: np.ndarray, over: float, is_low: bool) -> str:
        """Carry what is held, and stood `before` high, to a spot [3] (m) at a height of `over`, and leave it there.

        It is set down where `is_low`, and dropped otherwise.
        """
        hand, body = self.hand, self.shapes.body(name)
        hang = hand.place[2] - self.shapes.points(body)[:, 2].min()
        over += 0.5 * hang
        beside = (hand.place - self.shapes.place(name))[:2]
        hand.go(np.r_[hand.place[:2], over], grasp.turn, near=0.03, steps=40)
        there = spot[:2] + beside
        turn = grasp.turn if grasp.is_aside else self.grasps.leaning(grasp.upright, np.r_[there, spot[2] + hang])
        hand.go(np.r_[there, over], turn, near=0.015, steps=90)
        if self.shapes.place(name)[2] < before + 0.03:
            hand.hold(-1.0, 4)
            return "dropped"
        there = spot[:2] + (hand.place - self.shapes.place(name))[:2]
        above = hang + 0.012 if is_low else 0.3 * hang + 0.01
        hand.go(np.r_[there, spot[2] + above], turn, near=0.010, steps=60, speed=0.5)
        hand.hold(-1.0, 8)
        hand.go(hand.place + 0.10 * UP, turn, near=0.02, steps=25)
        hand.hold(-1.0, 8)
        return "put there"

    def _is_drawer(self, target: str) -> bool:
        site = self.env.object_sites_dict.get(target)
        return bool(site is not None and site.joints)

    def _shift(self, body: int, spot: np.ndarray) -> np.ndarray:  # [3] m
        points = self.shapes.points(body)
        return spot - [*self.shapes.data.xpos[body][:2], points[:, 2].min()]

    def _spot(self, relation: str, name: str, target: str) -> np.ndarray:  # [3] m
        """Where a thing is to be put: its middle seen from above, and the height of what it is put on."""
        env, shapes = self.env, self.shapes
        if target in env.objects_dict or target in env.fixtures_dict:
            return np.r_[shapes.place(target)[:2], shapes.points(shapes.body(target))[:, 2].max()]
        site = mujoco.mj_name2id(shapes.model, mujoco.mjtObj.mjOBJ_SITE, target)
        place = shapes.data.site_xpos[site].copy()
        half = np.abs(shapes.data.site_xmat[site].reshape(3, 3) @ shapes.model.site_size[site])
        is_drawer, apart = self._is_drawer(target), self._apart(relation, name, target)
        height = place[2] - half[2] if is_drawer else place[2] + half[2]
        return np.r_[place[:2] + apart if apart.any() else self._free(name, place, half, is_drawer), height]

    def _apart(self, relation: str, name: str, target: str) -> np.ndarray:  # [2] m
        """Where a thing is put from the middle of a place that has to bear several."""
        number, count = beside(self.goals, (relation, name, target))
        if relation != "on" or count < 2:
            return np.zeros(2)
        size = np.ptp(self.shapes.points(self.shapes.body(name))[:, :2], axis=0)
        return (number - (count - 1) / 2) * (size.min() + APART_M) * np.eye(2)[np.argmin(size)]

    def _free(self, name: str, place: np.ndarray, half: np.ndarray, is_drawer: bool) -> np.ndarray:  # [2] m
        """The middle of a region, unless something stands there or hangs above it; then its emptiest spot."""
        boxes = [self.shapes.points(self.shapes.body(other)) for other in self.shapes.things() if other != name]
        boxes = [(points.min(0), points.max(0)) for points in boxes]
        beside = [
            (low, high)
            for low, high in boxes
            if high[2] > place[2] and (np.abs((low + high)[:2] / 2 - place[:2]) < half[:2] + 0.05).all()
        ]
        if half[:2].max() < 0.07 or not (beside or is_drawer):
            return place[:2]
        body, top = self.shapes.body(name), place[2] + half[2]
        size = np.ptp(self.shapes.points(body)[:, :2], axis=0) / 2
        half = np.maximum(half[:2] - size - 0.003, 0.0) / 0.85 if is_drawer else half[:2]
        best, found = -np.inf, place[:2]
        for x in np.linspace(-0.85, 0.85, 7):
            for y in np.linspace(-0.85, 0.85, 7):
                spot = place[:2] + np.array([x, y]) * half
                gaps = [
                    np.linalg.norm(np.maximum(np.maximum(low[:2] - spot, spot - high[:2]), 0)) for low, high in beside
                ]
                worth = min([0.07, *gaps]) - 0.1 * np.hypot(*(np.array([x, y]) * half))
                worth -= 0.01 * self._overhung(body, spot, top, size) if is_drawer else 0.0
                if worth > best:
                    best, found = worth, spot
        return found

    def _overhung(self, body: int, spot: np.ndarray, height: float, size: np.ndarray) -> int:
        """How much is in the way of a thing of this size that comes down to a spot."""
        sides = [spot[i] + np.linspace(-size[i], size[i], 3) for i in (0, 1)]
        column = [[x, y, height + z] for x in sides[0] for y in sides[1] for z in (0.005, 0.04, 0.09, 0.14)]
        return self.shapes.hits(np.array(column), body)
