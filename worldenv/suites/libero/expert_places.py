"""Where the scripted expert puts things: on others, onto regions, into drawers."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from worldenv.suites.libero.expert_shapes import Shapes
from worldenv.suites.libero.goals import Goal, beside

APART_M = 0.012  # between things that are put beside each other


class Places:
    """Spots for things in a scene, of which the goals may ask for several on one place."""

    def __init__(self, env: Any, shapes: Shapes, goals: Sequence[Goal]):
        self.env, self.shapes, self.goals = env, shapes, goals

    def is_drawer(self, target: str) -> bool:
        """Whether a region is in a drawer."""
        site = self.env.object_sites_dict.get(target)
        return bool(site is not None and site.joints)

    def shift(self, body: int, spot: np.ndarray) -> np.ndarray:  # [3] m
        """The way of a thing from where it stands to a spot."""
        points = self.shapes.points(body)
        return spot - [*self.shapes.data.xpos[body][:2], points[:, 2].min()]

    def spot(self, relation: str, name: str, target: str) -> np.ndarray:  # [3] m
        """Where a thing is to be put: its middle seen from above, and the height of what it is put on."""
        env, shapes = self.env, self.shapes
        if target in env.objects_dict or target in env.fixtures_dict:
            return np.r_[shapes.place(target)[:2], shapes.points(shapes.body(target))[:, 2].max()]
        site = mujoco.mj_name2id(shapes.model, mujoco.mjtObj.mjOBJ_SITE, target)
        place = shapes.data.site_xpos[site].copy()
        half = np.abs(shapes.data.site_xmat[site].reshape(3, 3) @ shapes.model.site_size[site])
        is_drawer, apart = self.is_drawer(target), self._apart(relation, name, target)
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
        near = [
            (low, high)
            for low, high in boxes
            if high[2] > place[2] and (np.abs((low + high)[:2] / 2 - place[:2]) < half[:2] + 0.05).all()
        ]
        if half[:2].max() < 0.07 or not (near or is_drawer):
            return place[:2]
        body, top = self.shapes.body(name), place[2] + half[2]
        size = np.ptp(self.shapes.points(body)[:, :2], axis=0) / 2
        half = np.maximum(half[:2] - size - 0.003, 0.0) / 0.85 if is_drawer else half[:2]
        best, found = -np.inf, place[:2]
        for x in np.linspace(-0.85, 0.85, 7):
            for y in np.linspace(-0.85, 0.85, 7):
                spot = place[:2] + np.array([x, y]) * half
                gaps = [
                    np.linalg.norm(np.maximum(np.maximum(low[:2] - spot, spot - high[:2]), 0)) for low, high in near
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
