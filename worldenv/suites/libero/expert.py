"""A scripted expert for LIBERO. It looks at the simulator's true state, and works off the goal of a task.

It works the relations of the goal off one after the other, each with several grasps if need be. What has to be open for
one is opened first.
"""

from collections.abc import Sequence

import numpy as np

from worldenv.suites.libero.expert_doors import Doors
from worldenv.suites.libero.expert_grasps import UP, Grasp, Grasps
from worldenv.suites.libero.expert_hand import Ended, Hand, angle_between, make_detour
from worldenv.suites.libero.expert_places import Places
from worldenv.suites.libero.expert_shapes import Shapes
from worldenv.suites.libero.goals import ORDER, Goal, ordered
from worldenv.suites.libero.process import Acted
from worldenv.suites.libero.scene import Scene

ATTEMPTS = 3  # at one relation, each with the next grasp
OVER_M = 0.12  # above all that a thing is carried over
# How far aside (m) of the hand's way to a thing others count for its height. Shuffled things all count: then the height
# is the same wherever they stand, and a policy does not have to see it.
ASIDE_M, ASIDE_SHUFFLED_M = 0.13, 1.0
BESIDE_M = 0.05  # a hand so near to where its way down begins, horizontally, rises no higher than that


def demonstrate(
    scene: Scene, seed: int, horizon: int, repeat: int, noise: float, look: bool, detour: bool = False
) -> Acted:
    """Act out the episode that has just begun in the scene, and show it if it succeeds and somebody looks.

    The action that is recorded is the expert's. Where noise is not 0, another one is carried out: Laplace noise of a
    scale between 0 and `noise`, drawn from `seed`, which lasts for a fifth of a second. Every action is carried out
    `repeat` times. With `detour`, the hand goes somewhere else before the recording begins.
    """
    if detour:
        make_detour(scene, repeat, seed)
    hand, camera, frames = Hand(scene, horizon, repeat, noise, seed), scene.camera(), None
    told = Expert(scene, hand).run()
    if look and any(hand.done):
        frames, camera = scene.frames_of(hand.states), scene.cameras_of(hand.states)
    states, proprio, joints, places = (np.stack(part) for part in (hand.states, hand.proprio, hand.joints, hand.places))
    actions, carried, done = np.stack(hand.actions), np.stack(hand.carried), np.array(hand.done)
    return Acted(actions, done, proprio, states, joints, camera, frames, told, places, carried)


def plan(scene: Scene, goal: Goal, home: np.ndarray, chunk: int, repeat: int) -> np.ndarray | None:  # [K, 7] float32
    """The next K actions of the expert towards a goal, from the state in which the scene is; the scene is left there.

    `home` is how the hand is turned when it rests [3, 3]. None: the task of the scene is done meanwhile, or the expert
    knows no way.
    """
    hand = Hand(scene, chunk, repeat, 0.0, 0)
    hand.home = home
    Expert(scene, hand, [goal]).run()
    return None if any(hand.done) or len(hand.actions) < chunk else np.stack(hand.actions)


class Expert:
    """Acts in a scene until its goals hold, the actions are used up, or nothing helps. Its goals: those of the task."""

    def __init__(self, scene: Scene, hand: Hand, goals: Sequence[Goal] | None = None):
        self.env, self.hand = scene.env, hand
        self.aside = ASIDE_SHUFFLED_M if scene.shuffled else ASIDE_M
        base = scene.env.sim.model.body_name2id("robot0_base")
        self.goals = goals or ordered(scene.env.parsed_problem["goal_state"])
        self.shapes = Shapes(scene.env)
        self.grasps = Grasps(self.shapes, hand.home, self.shapes.data.xpos[base].copy())
        self.doors = Doors(scene.env, hand, self.shapes, self.grasps, self.holds)
        self.places = Places(scene.env, self.shapes, self.goals)

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
        name = region if self.places.is_drawer(region) else self.env.object_sites_dict[region].parent_name
        for _ in range(ATTEMPTS):
            if self.doors.can_open(name) and not self.holds(("open", name)):
                self.doors.move("open", name)

    def _put(self, relation: str, name: str, target: str, attempt: int) -> str:
        """Take a thing, with another grasp in each attempt, and put it on or into something."""
        body, hand = self.shapes.body(name), self.hand
        spot = self.places.spot(relation, name, target)
        grasps = self.grasps.of(body, self.places.shift(body, spot) if self.places.is_drawer(target) else None)
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
        spot = self.places.spot(relation, name, target)
        is_low = relation == "on" or self.places.is_drawer(target)
        return self._bring(grasp, name, before[2], spot, over, is_low)

    def _take(self, grasp: Grasp, top: float, name: str) -> None:
        """Come from over the neighbours, or straight down if the hand is over the thing; then close the fingers."""
        hand, turn = self.hand, grasp.turn
        hand.grip = -1.0
        around = self.shapes.corridor_top(hand.place, grasp.before, (name,), self.aside) + 0.05
        high = max(top + 0.10, min(around, top + 0.25))
        away = hand.place - grasp.before
        beside, turned = np.linalg.norm(away[:2]), angle_between(hand.turn, turn)
        if beside < BESIDE_M:
            high = grasp.before[2]
        if beside > 0.025 or turned > 0.15:
            if hand.place[2] < high - 0.03:
                hand.go(np.r_[hand.place[:2], high], None, near=0.03, steps=25)
            hand.go(np.r_[grasp.before[:2], high], turn, near=0.04, aligned=0.15)
        if beside > 0.012 or turned > 0.08 or away[2] > 0 or grasp.is_aside:
            hand.go(grasp.before, turn, near=0.012, aligned=0.08, steps=40)
        if grasp.is_aside:
            hand.go(grasp.place + 0.4 * (grasp.before - grasp.place), turn, near=0.02, steps=40)
        hand.go(grasp.place, turn, near=0.008, steps=40, speed=0.6)
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
