"""The hand of the scripted expert: where it is, straight motions, and the record of all that it does."""

from contextlib import suppress
from typing import Any

import numpy as np

STEP_M, TURN_RAD = 0.05, 0.5  # what an action of 1 asks for
HELD = 4  # steps of the simulator for which a disturbance lasts
CALM = 0.4  # share of the noise while the fingers move
AFTER_SUCCESS = 2  # actions recorded after success, so that the end of a task can be seen
STALLED, LEAST_M = 12, 5e-4  # actions without so much progress end a motion
# A detour leads to a place relative to where the hand begins, or relative to the thing of the task.
ANYWHERE_M = np.array([[-0.15, -0.25, -0.2], [0.25, 0.25, 0.05]])  # least and greatest x, y, z
NEAR_M, HIGHEST_M = 0.12, 0.2  # from the thing: horizontally, and above it
ASIDE_M, ABOVE_M = 0.06, 0.1  # so near to the thing horizontally, the hand stays so much above it
DETOUR_STEPS = 20  # actions of each of the two motions, at most
BESIDE = np.array([0.7, 0.7, 0.7, 0.1, 0.1, 0.1, 0.0])  # scale of disturbances, of the noise


class Ended(Exception):
    """The episode is over: the goal holds, or all actions are used up."""


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:  # [3, 3]
    """The matrix that turns by an angle (rad) about a unit vector."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def angle_between(a: np.ndarray, b: np.ndarray) -> float:  # [3, 3] each
    """How far two orientations are apart (rad)."""
    return float(np.arccos(np.clip((np.trace(a @ b.T) - 1) / 2, -1, 1)))


def turn_from(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # [3] axis times angle (rad)
    """The rotation that leads from one orientation to another."""
    change = b @ a.T
    angle = angle_between(b, a)
    if angle < 1e-4:
        return np.zeros(3)
    lever = np.array([change[2, 1] - change[1, 2], change[0, 2] - change[2, 0], change[1, 0] - change[0, 1]])
    return angle / (2 * np.sin(angle) + 1e-9) * lever


def nearer(turn: np.ndarray, home: np.ndarray) -> np.ndarray:  # [3, 3] each
    """The orientation, or the one with the fingers exchanged: the one that the wrist of a hand at home reaches better.

    The wrist's range has more room to the left: of two quarter turns it is the left one.
    """
    other = turn * [-1, -1, 1]
    left = rotation(np.array([0.0, 0.0, 1.0]), 0.1) @ home
    return min(turn, other, key=lambda turn: angle_between(turn, left))


def make_detour(scene: Any, repeat: int, seed: int) -> None:  # a Scene, which imports LIBERO
    """Move the hand, without noise, to a random place: in half of the cases to one near the thing of the task."""
    random = np.random.default_rng([seed, 2])
    hand = Hand(scene, 2 * DETOUR_STEPS, repeat, 0.0, seed)
    place = hand.place + random.uniform(*ANYWHERE_M)
    if random.random() < 0.5:
        angle, away = random.uniform(0, 2 * np.pi), random.uniform(0, NEAR_M)
        least = ABOVE_M if away < ASIDE_M else 0.0
        thing = scene.place(scene.goal()[1])
        place = thing + [away * np.cos(angle), away * np.sin(angle), random.uniform(least, HIGHEST_M)]
    with suppress(Ended):
        hand.go(np.r_[place[:2], hand.place[2]], hand.home, near=0.03, steps=DETOUR_STEPS)  # over what stands there
        hand.go(place, hand.home, near=0.03, steps=DETOUR_STEPS)


class Hand:
    """Moves the hand of the robot in a scene and records it.

    What is recorded is the action that is meant; with noise, another one is carried out, `repeat` times. Every motion
    raises Ended once the goal of the task holds, or after `horizon` actions. The columns of an orientation [3, 3] are
    the direction in which the fingers close, sideways, and the direction in which they point.
    """

    def __init__(self, scene: Any, horizon: int, repeat: int, noise: float, seed: int):  # a Scene, which imports LIBERO
        self.scene, self.horizon, self.repeat, self.grip = scene, horizon, repeat, -1.0
        self._random = np.random.default_rng([seed, 1])
        self._noise = noise * self._random.uniform()
        self._site = scene.env.robots[0].eef_site_id
        self._data = scene.env.sim.data._data
        self.home = self.turn
        self.actions: list[np.ndarray] = []
        self.carried: list[np.ndarray] = []
        self.done: list[bool] = []
        self.states, self.proprio, self.joints = [scene.state()], [scene.proprio()], [scene.joints()]
        self.places = [scene.places()]

    @property
    def place(self) -> np.ndarray:  # [3] m
        """Where the middle between the fingers is."""
        return self._data.site_xpos[self._site].copy()

    @property
    def turn(self) -> np.ndarray:  # [3, 3]
        """How the hand is turned."""
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    def act(self, move: np.ndarray, turn: np.ndarray, share: float = 1.0) -> None:  # [3] each, in [-1, 1]
        """Carry out one action, with a share of the noise. Raises Ended."""
        if len(self.actions) >= self.horizon:
            raise Ended
        self._carry_out(np.r_[move, turn, self.grip], share)
        if self.done[-1]:
            for _ in range(min(AFTER_SUCCESS, self.horizon - len(self.actions))):
                self._carry_out(np.r_[np.zeros(6), self.grip], 0.0)
            raise Ended

    def _carry_out(self, action: np.ndarray, share: float) -> None:
        if len(self.actions) % -(-HELD // self.repeat) == 0:
            self._disturbance = self._random.laplace(size=7) * self._noise * BESIDE
        meant = action.clip(-1, 1).astype(np.float32)
        self.actions.append(meant)
        carried = (meant + share * self._disturbance).clip(-1, 1).astype(np.float32)
        self.carried.append(carried)
        self.done.append(any([self.scene.step(carried) for _ in range(self.repeat)]))
        self.states.append(self.scene.state())
        self.proprio.append(self.scene.proprio())
        self.joints.append(self.scene.joints())
        self.places.append(self.scene.places())

    def go(
        self,
        place: np.ndarray,  # [3] m
        turn: np.ndarray | None = None,  # [3, 3]; None: as it comes
        near: float = 0.008,  # m
        aligned: float = 0.06,  # rad
        steps: int = 80,
        speed: float = 1.0,
    ) -> bool:
        """Move straight to a place; whether it is reached. A motion that does not get on ends early. Raises Ended.

        What is done slowly has to be done well: it is disturbed less.
        """
        best, stalled = np.inf, 0
        for _ in range(steps):
            away = place - self.place
            lever = np.zeros(3) if turn is None else turn_from(self.turn, turn)
            error = np.linalg.norm(away)
            if error < near and np.linalg.norm(lever) < aligned:
                return True
            move = away / STEP_M
            move *= min(1.0, speed / max(np.abs(move).max(), 1e-9))
            self.act(move, np.clip(1.5 * lever / TURN_RAD, -1, 1), speed**2)
            error += 0.05 * np.linalg.norm(lever)
            best, stalled = (error, 0) if error < best - LEAST_M else (best, stalled + 1)
            if stalled > STALLED:
                return False
        return False

    def hold(self, grip: float, steps: int) -> None:
        """Stay for so many steps of the simulator, and close (1) or open (-1) the fingers. Raises Ended."""
        self.grip = grip
        for _ in range(-(-steps // self.repeat)):
            self.act(np.zeros(3), np.zeros(3), CALM)
