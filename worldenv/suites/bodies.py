"""The true things of a scene in MuJoCo: where they are, which one the gripper holds, which pixels each covers.

This module imports MuJoCo and does not import torch. Only the processes that simulate import it.
"""

from collections.abc import Callable, Sequence
from copy import copy

import mujoco
import numpy as np

from worldenv.suites.offscreen import Trace, shrunk

OPPOSITE = -0.5  # largest cosine between the directions in which the two fingers push a thing that they hold
UNSEEN = mujoco.mjNGROUP - 1  # the group of the geoms that are not drawn
WHOLE = mujoco.mjtState.mjSTATE_INTEGRATION  # all numbers on which the next simulator step depends
SOLVING, DAMPING = 20, 1e-6  # of damped least squares for the joints of an arm: iterations, and the damping


class Bodies:
    """The D things of a scene, in the order of MuJoCo's bodies: all rigid bodies that can move, without the robot.

    A thing is a body with a joint, and what is welded to it. A can, a drawer, a door and a button are things. The frame
    of a cabinet is not a thing, because it has no joint.
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
        self.is_robot = is_robot[model.geom_bodyid]  # for every geom, as are `thing` and `finger`
        self.thing = _index_in(owner, self.body)  # -1: it belongs to no thing
        ends = np.array([model.body(name).id for name in fingers])
        self.finger, self.hand = _index_in(owner, weld[ends]), model.body_parentid[ends[0]]
        self.arm = np.flatnonzero(is_robot[model.dof_bodyid] & ~np.isin(weld[model.dof_bodyid], weld[ends]))  # dofs
        self._middle = np.stack([self._middle_of(i) for i in range(len(self.body))])  # [D, 3] m, in the body's axes

    def _middle_of(self, thing: int) -> np.ndarray:
        """The middle of the box around the thing's geoms, in the axes of its body. It is constant: a thing is rigid."""
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
        """The thing that both fingers touch and push in opposite directions; -1: none.

        It need not move with the hand. Closed fingers that press a button do not hold it: both push it in the same
        direction.
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

    def shift_hand(self, offset: np.ndarray) -> None:  # [3] m
        """Set the joint angles of the arm so that the hand is moved by an offset and keeps its rotation.

        By damped least squares, as near as the limits of the joints allow. All joints of the arm have to be hinges.
        """
        model, data, hand = self.model, self.data, self.hand
        joints = model.dof_jntid[self.arm]
        places, is_limited = model.jnt_qposadr[joints], model.jnt_limited[joints] > 0
        low, high = np.where(is_limited, model.jnt_range[joints].T, [[-np.inf], [np.inf]])
        goal, turn = data.xpos[hand] + offset, data.xquat[hand].copy()
        jacobian, error, apart = np.zeros((6, model.nv)), np.zeros(6), np.zeros(3)
        for _ in range(SOLVING):
            mujoco.mju_subQuat(apart, turn, data.xquat[hand])  # in the axes of the hand
            error[:3], error[3:] = goal - data.xpos[hand], data.xmat[hand].reshape(3, 3) @ apart
            mujoco.mj_jacBody(model, data, jacobian[:3], jacobian[3:], hand)
            own = jacobian[:, self.arm]
            move = own.T @ np.linalg.solve(own @ own.T + DAMPING * np.eye(6), error)
            data.qpos[places] = (data.qpos[places] + move).clip(low, high)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
        mujoco.mj_forward(model, data)

    def state(self) -> np.ndarray:
        """All numbers on which the next step of MuJoCo depends; `restore` sets them again."""
        out = np.empty(mujoco.mj_stateSize(self.model, WHOLE))
        mujoco.mj_getState(self.model, self.data, out, WHOLE)
        return out

    def restore(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self.model, self.data, state, WHOLE)
        mujoco.mj_forward(self.model, self.data)


def _index_in(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The index of each value in `names`; -1: it is not there."""
    found = values[:, None] == names
    return np.where(found.any(1), found.argmax(1), -1)


class Outlines:
    """Which pixels of one camera show a thing, by MuJoCo's segmentation. The object lives as long as the process."""

    def __init__(
        self,
        bodies: Bodies,
        camera: int,
        context: mujoco.MjrContext,  # the one that draws the pictures of the scene
        begin: Callable[[], None],  # makes the OpenGL context of `context` current
        option: mujoco.MjvOption,  # the options with which the pictures of the scene are drawn
        size: int,  # pixels, height = width
        finer: int,  # finer x finer pixels of a drawing are averaged to one pixel
        turned: bool = False,  # whether the pictures of the scene are turned by 180 degrees
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
        self._drawn = (model.geom_rgba[:, 3] > 0) & (material > 0)  # geoms that are visible in pictures

    def of(self, thing: int, alone: bool) -> np.ndarray:  # [H, W] uint8, 255: all of a pixel
        """How much of every pixel shows a thing now, when it is alone, or among all other things without the robot."""
        shown = self.bodies.thing == thing if alone else ~self.bodies.is_robot
        return shrunk(255 * (self._things(shown) == thing).astype(np.uint8)[..., None], self.finer)[..., 0]

    def of_all(self) -> np.ndarray:  # [D, H, W] uint8, 255: all of a pixel
        """How much of every pixel shows each thing now, with the robot in the picture."""
        found = self._things(np.ones_like(self.bodies.is_robot))
        each = found[..., None] == np.arange(len(self.bodies.body))
        return np.moveaxis(shrunk(255 * each.astype(np.uint8), self.finer), -1, 0)

    def _things(self, shown: np.ndarray) -> np.ndarray:  # [G] bool -> [side, side]
        """The thing in every pixel of a drawing of some geoms; -1: none."""
        bodies, model = self.bodies, self.bodies.model
        groups = model.geom_group.copy()
        model.geom_group[~(self._drawn & shown)] = UNSEEN
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, bodies.data, self._option, self._nothing, self._camera, everything, self._scene)
        model.geom_group[:] = groups
        thing = np.full(self._scene.ngeom + 1, -1)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                thing[geom.segid + 1] = bodies.thing[geom.objid]
        picture = thing[self._numbers()]
        return picture[::-1, ::-1] if self.turned else picture

    def _numbers(self) -> np.ndarray:  # [side, side], 1 + the segment that a pixel shows; 0: none
        self._begin()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        side = self.size * self.finer
        place, rgb = mujoco.MjrRect(0, 0, side, side), np.empty((side, side, 3), dtype=np.uint8)
        mujoco.mjr_render(place, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, None, place, self._context)
        return rgb[::-1].astype(np.int64) @ [1, 256, 65536]


def trace(scene: "object", actions: np.ndarray) -> Trace:  # [T, n, A]
    """Carry out T actions, each n times, in the episode that a scene has just begun, and record its true things.

    The scene needs `step`, `proprio` and `bodies`.
    """
    bodies: Bodies = scene.bodies
    seen = [(scene.proprio(), bodies.data.qpos.copy(), bodies.centres(), bodies.held())]
    for action in actions:
        for part in action:
            scene.step(part)
        seen.append((scene.proprio(), bodies.data.qpos.copy(), bodies.centres(), bodies.held()))
    return Trace(*(np.stack(part) for part in zip(*seen, strict=True)))


def beside(
    scene: "object",
    actions: np.ndarray,  # [T, n, A], of the episode
    steps: np.ndarray,  # [M] int64
    offsets: np.ndarray,  # [M, 3] m
    tried: np.ndarray,  # [M, K, n, A]
) -> list[tuple[np.ndarray, Trace]]:  # M: frame after the offset [H, W, 3] uint8, trace of the tried actions
    """Carry out the episode that a scene has just begun, and try M chunks in it after the hand was moved by an offset.

    Try i begins at steps[i]. The hand is moved by offsets[i], the first camera's frame is taken, tried[i] is carried
    out, and the state from before the offset is restored. The scene also needs `frames`, `kept`, `put_back`, `shift`.
    """
    out = {}
    for step in range(max(steps) + 1):
        for row in np.flatnonzero(steps == step).tolist():
            kept = scene.kept()
            scene.shift(offsets[row])
            out[row] = scene.frames()[0], trace(scene, tried[row])
            scene.put_back(kept)
        for part in actions[step] if step < len(actions) else ():
            scene.step(part)
    return [out[row] for row in range(len(steps))]


def outlines(
    scene: "object",
    poses: np.ndarray,  # [M, Q], as `Trace.qpos`
    things: Sequence[int],  # M
    alone: Sequence[bool],  # n
) -> np.ndarray:  # [M, n, H, W] uint8
    """`Outlines.of` M things, each in a state with given coordinates, in the episode that a scene has just begun.

    The scene is left in the last of these states.
    """
    bodies, out = scene.bodies, []
    for pose, thing in zip(poses, things, strict=True):
        bodies.data.qpos[:] = pose
        mujoco.mj_kinematics(bodies.model, bodies.data)
        mujoco.mj_camlight(bodies.model, bodies.data)
        out.append([scene.outlines.of(thing, is_alone) for is_alone in alone])
    return np.array(out)
