"""The true things of a scene in MuJoCo: where they are, which one the gripper holds, which pixels each covers.

It imports no torch, and MuJoCo: only a process that simulates imports it.
"""

from collections.abc import Callable, Sequence
from copy import copy

import mujoco
import numpy as np

from worldenv.suites.offscreen import Trace, shrunk

OPPOSITE = -0.5  # at most, the cosine between the directions in which the fingers push a thing that they hold
UNSEEN = mujoco.mjNGROUP - 1  # a group of geoms that nobody draws


class Bodies:
    """The D things of a scene, in the order of MuJoCo's bodies: all that moves and is no part of the robot.

    A thing is rigid: a body with a joint, and what is welded to it. So a can is one, and so are a drawer, a door and a
    button, but a cabinet without its drawers is none.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        robot: str,  # the outermost body of the robot
        fingers: tuple[str, str],
    ):
        self.model, self.data = model, data
        weld, is_robot = model.body_weldid, model.body_rootid == model.body(robot).id
        self.body = np.unique(weld[(weld > 0) & ~is_robot])  # [D]
        owner = weld[model.geom_bodyid]
        self.is_robot = is_robot[model.geom_bodyid]  # as all that follow, of every geom
        self.thing = _index_in(owner, self.body)  # -1: of none
        self.finger = _index_in(owner, weld[[model.body(name).id for name in fingers]])
        self._middle = np.stack([self._middle_of(i) for i in range(len(self.body))])  # [D, 3] m, from each body

    def _middle_of(self, thing: int) -> np.ndarray:
        """The middle of the box around its geoms, along the axes of its body. It does not change: a thing is rigid."""
        data, body, (geoms,) = self.data, self.body[thing], np.nonzero(self.thing == thing)
        if not len(geoms):
            return np.zeros(3)
        axes = data.xmat[body].reshape(3, 3).T
        turn, box = axes @ data.geom_xmat[geoms].reshape(-1, 3, 3), self.model.geom_aabb[geoms]
        middle = (data.geom_xpos[geoms] - data.xpos[body]) @ axes.T + (turn @ box[:, :3, None])[..., 0]
        reach = (np.abs(turn) @ box[:, 3:, None])[..., 0]
        return ((middle - reach).min(0) + (middle + reach).max(0)) / 2

    def centres(self) -> np.ndarray:  # [D, 3] float32 m
        """The middle of every thing."""
        axes = self.data.xmat[self.body].reshape(-1, 3, 3)
        return (self.data.xpos[self.body] + (axes @ self._middle[..., None])[..., 0]).astype(np.float32)

    def held(self) -> int:
        """The thing that both fingers touch and push towards each other; -1: none.

        Whether it moves with the hand does not matter. To press a button with closed fingers is not to hold it: both
        push it in one direction.
        """
        geoms, normal = self.data.contact.geom, self.data.contact.frame[:, :3]  # from the first geom to the second
        pushes, pushed = np.concatenate([geoms, geoms[:, ::-1]]).T
        finger, thing, way = self.finger[pushes], self.thing[pushed], np.concatenate([normal, -normal])
        some = (finger >= 0) & (thing >= 0)
        push = np.zeros((len(self.body), 2, 3))
        np.add.at(push, (thing[some], finger[some]), way[some])
        one, other = push[:, 0], push[:, 1]
        length = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine = np.divide((one * other).sum(1), length, out=np.ones(len(push)), where=length > 0)
        return int(cosine.argmin()) if (cosine <= OPPOSITE).any() else -1


def _index_in(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Where each value stands among the names; -1: nowhere."""
    found = values[:, None] == names
    return np.where(found.any(1), found.argmax(1), -1)


class Outlines:
    """Draws which pixels of one camera show a thing, by MuJoCo's segmentation. It lives as long as the process."""

    def __init__(
        self,
        bodies: Bodies,
        camera: int,
        context: mujoco.MjrContext,  # one that the pictures of the scene are drawn with
        begin: Callable[[], None],  # makes its OpenGL context current
        option: mujoco.MjvOption,  # with which they are drawn
        size: int,  # pixels, height = width
        finer: int,  # how many pixels of a drawing are averaged, on each side
        turned: bool = False,  # whether pictures are turned by 180 degrees
    ):
        self.bodies, self.size, self.finer, self.turned = bodies, size, finer, turned
        self._context, self._begin, self._option = context, begin, copy(option)
        self._option.geomgroup[UNSEEN] = 0
        self._option.sitegroup[:] = 0
        model = bodies.model
        self._scene = mujoco.MjvScene(model, maxgeom=2 * model.ngeom + 100)
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self._scene.flags[flag] = 1
        self._camera, self._nothing = mujoco.MjvCamera(), mujoco.MjvPerturb()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        material = np.where(model.geom_matid < 0, 1.0, np.r_[model.mat_rgba[:, 3], 1.0][model.geom_matid])
        self._drawn = (model.geom_rgba[:, 3] > 0) & (material > 0)  # those that pictures show

    def of(self, thing: int, alone: bool) -> np.ndarray:  # [H, W] uint8, 255: all of a pixel
        """How much of every pixel shows a thing now: where it is alone, or among all others but the robot."""
        bodies, model = self.bodies, self.bodies.model
        shown = self._drawn & (bodies.thing == thing if alone else ~bodies.is_robot)
        groups = model.geom_group.copy()
        model.geom_group[~shown] = UNSEEN
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, bodies.data, self._option, self._nothing, self._camera, everything, self._scene)
        model.geom_group[:] = groups
        shows = np.zeros(self._scene.ngeom + 1, dtype=np.uint8)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and bodies.thing[geom.objid] == thing:
                shows[geom.segid + 1] = 255
        picture = shows[self._numbers()]
        picture = picture[::-1, ::-1] if self.turned else picture
        return shrunk(picture[..., None], self.finer)[..., 0]

    def _numbers(self) -> np.ndarray:  # [side, side], one more than the segment that a pixel shows, 0: none
        self._begin()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        side = self.size * self.finer
        place, rgb = mujoco.MjrRect(0, 0, side, side), np.empty((side, side, 3), dtype=np.uint8)
        mujoco.mjr_render(place, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, None, place, self._context)
        return rgb[::-1].astype(np.int64) @ [1, 256, 65536]


def trace(scene: "object", actions: np.ndarray) -> Trace:  # [T, n, A]
    """Carry out T actions, each n times, in the episode that a scene has just begun, and look at its things.

    A scene has `step`, `proprio` and `bodies`.
    """
    bodies: Bodies = scene.bodies
    seen = [(scene.proprio(), bodies.data.qpos.copy(), bodies.centres(), bodies.held())]
    for action in actions:
        for part in action:
            scene.step(part)
        seen.append((scene.proprio(), bodies.data.qpos.copy(), bodies.centres(), bodies.held()))
    return Trace(*(np.stack(part) for part in zip(*seen, strict=True)))


def outlines(
    scene: "object",
    poses: np.ndarray,  # [M, Q], as `Trace.qpos`
    things: Sequence[int],  # M
    alone: bool,
) -> np.ndarray:  # [M, H, W] uint8
    """`Outlines.of` things in poses of the episode that a scene has just begun; the scene is left in the last one."""
    bodies, out = scene.bodies, []
    for pose, thing in zip(poses, things, strict=True):
        bodies.data.qpos[:] = pose
        mujoco.mj_kinematics(bodies.model, bodies.data)
        mujoco.mj_camlight(bodies.model, bodies.data)
        out.append(scene.outlines.of(thing, alone))
    return np.stack(out)
