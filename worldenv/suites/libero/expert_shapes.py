"""The shapes of the things in a scene, from MuJoCo's true state: where their corners are, and what would touch them."""

from collections.abc import Collection
from functools import cache
from typing import Any

import mujoco
import numpy as np

ROBOT = ("robot0", "gripper0", "mount0")  # how the names of its bodies begin
GROUND = ("table", "floor", "countertop")  # what things stand on
MARGIN_M = 0.003
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
TURNS = np.linspace(0, 2 * np.pi, 16, endpoint=False)
RIM = np.concatenate([np.c_[np.cos(TURNS), np.sin(TURNS), np.full(16, z)] for z in (-1, 1)])  # of a cylinder


class Shapes:
    """Corners and collisions of the bodies of a scene. A body counts with all that is fixed to it or hinged on it."""

    def __init__(self, env: Any):
        self.env, self.model, self.data = env, env.sim.model._model, env.sim.data._data
        model, types = self.model, mujoco.mjtGeom
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, i) or "" for i in range(model.nbody)]
        is_robot = np.array([name.startswith(ROBOT) for name in names])
        touches = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        self._solid = touches & ~is_robot[model.geom_bodyid] & (model.geom_type != types.mjGEOM_PLANE)
        slides = model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE
        self.drawers = [int(body) for body in model.jnt_bodyid[slides] if not is_robot[body]]
        self.under = cache(self._under)
        self._corners = cache(self._corners_of)

    def body(self, name: str) -> int:
        """The body of a thing or fixture."""
        return self.env.obj_body_id[name]

    def place(self, name: str) -> np.ndarray:  # [3] m
        """Where a thing or fixture is."""
        return self.data.xpos[self.body(name)].copy()

    def _under(self, body: int) -> np.ndarray:  # [geoms] bool
        """Which geoms belong to a body, or to one that hangs on it."""
        found = np.zeros(self.model.nbody, dtype=bool)
        found[body] = True
        for child in range(body + 1, self.model.nbody):  # parents come first
            found[child] |= found[self.model.body_parentid[child]]
        return found[self.model.geom_bodyid]

    def solid(self, body: int) -> np.ndarray:  # [n]
        """The geoms of a body that can be touched."""
        return np.flatnonzero(self._solid & self.under(body))

    def points(self, body: int) -> np.ndarray:  # [n, 3] m
        """Corners of the collision geoms of a body, where they are now."""
        geoms = np.flatnonzero(self.under(body) & (self.model.geom_contype != 0))
        return np.concatenate([self.corners(geom) for geom in geoms]) if len(geoms) else self.data.xpos[body][None]

    def corners(self, geom: int) -> np.ndarray:  # [n, 3] m
        """Corners of one geom, where it is now."""
        return self._corners(geom) @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]

    def _corners_of(self, geom: int) -> np.ndarray:
        model, types, size = self.model, mujoco.mjtGeom, self.model.geom_size[geom]
        kind = model.geom_type[geom]
        if kind == types.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            first = model.mesh_vertadr[mesh]
            return model.mesh_vert[first : first + model.mesh_vertnum[mesh]].astype(float)
        if kind == types.mjGEOM_SPHERE:
            return CORNERS * size[0]
        if kind == types.mjGEOM_CYLINDER:
            return RIM * [size[0], size[0], size[1]]
        if kind == types.mjGEOM_CAPSULE:
            return RIM * [size[0], size[0], size[0] + size[1]]
        return CORNERS * size

    def hits(self, points: np.ndarray, without: int | None = None, is_filled: bool = False) -> int:  # [n, 3] m
        """How many of the points lie in the box around another geom than the robot's and those of one body.

        is_filled: drawers count as if they were full, but for one that holds the body.
        """
        model, data = self.model, self.data
        geoms = np.flatnonzero(self._solid if without is None else self._solid & ~self.under(without))
        away = points[None] - data.geom_xpos[geoms][:, None]  # [G, n, 3]
        local = away @ data.geom_xmat[geoms].reshape(-1, 3, 3)
        centre, half = model.geom_aabb[geoms, None, :3], model.geom_aabb[geoms, None, 3:]
        inside = (np.abs(local - centre) < half + MARGIN_M).all(2).any(0)
        for drawer in self.drawers if is_filled else ():
            if without is None or not self._holds(drawer, without):
                inside |= self._in_box(drawer, points)
        return int(inside.sum())

    def _in_box(self, body: int, points: np.ndarray) -> np.ndarray:  # [n, 3] m -> [n] bool
        """Which points lie in the box around a body."""
        place, turn = self.data.xpos[body], self.data.xmat[body].reshape(3, 3)
        own, local = (self.points(body) - place) @ turn, (points - place) @ turn
        return ((local > own.min(0) - MARGIN_M) & (local < own.max(0) + MARGIN_M)).all(1)

    def _holds(self, drawer: int, body: int) -> bool:
        return bool(self._in_box(drawer, self.data.xpos[body][None]).any())

    def things(self) -> list[str]:
        """Names of the things that can be moved."""
        return list(self.env.objects_dict)

    def corridor_top(self, a: np.ndarray, b: np.ndarray, without: Collection[str] = (), half: float = 0.13) -> float:
        """The highest point of what stands near the straight way from a to b (m, seen from above); 0: nothing."""
        fixtures = [name for name in self.env.fixtures_dict if not any(word in name for word in GROUND)]
        a, b, top = a[:2], b[:2], 0.0
        length = np.linalg.norm(b - a) + 1e-9
        along = (b - a) / length
        across = np.array([-along[1], along[0]])
        for name in self.things() + fixtures:
            if name in without:
                continue
            points = self.points(self.body(name))
            ahead, aside = (points[:, :2] - a) @ along, np.abs((points[:, :2] - a) @ across)
            low, high = points.min(0), points.max(0)
            is_near = (ahead > -half) & (ahead < length + half) & (aside < half)
            is_around = np.abs((low + high)[:2] - (a + b)) < (high - low)[:2] + 2 * half  # both corners may lie outside
            if is_near.any() or is_around.all():
                top = max(top, high[2])
        return top

    def way_out(self, body: int, direction: np.ndarray | None = None) -> np.ndarray:  # [2] -> [2] m
        """How a thing has to be shifted, in a direction or any, before it can be lifted.

        Zeros, if nothing is above it, and in a drawer, where it cannot be shifted.
        """
        if any(self._holds(drawer, body) for drawer in self.drawers):
            return np.zeros(2)
        points = self.points(body)
        low, high = points.min(0), points.max(0)
        grid = [np.linspace(low[i] - 0.005, high[i] + 0.005, 4) for i in (0, 1)]
        column = np.array([[x, y, high[2] + z] for x in grid[0] for y in grid[1] for z in np.linspace(0.02, 0.2, 7)])
        ways = np.c_[np.cos(TURNS), np.sin(TURNS)] if direction is None else direction[None] / np.linalg.norm(direction)
        for far in np.arange(0.0, 0.2, 0.02):
            for way in ways if far else ways[:1]:
                if not self.hits(column + np.r_[far * way, 0], body, is_filled=True):
                    return far * way
        return np.zeros(2)
