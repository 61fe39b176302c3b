"""One task of Meta-World in MuJoCo: begun from a start state, stepped, drawn when somebody looks."""

from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from worldenv.suites.bodies import Bodies, Outlines
from worldenv.suites.metaworld.tasks import TIP_M, TURN_RAD
from worldenv.suites.offscreen import camera_matrix, shrunk

VERSION = "v3"
ROBOT, FINGERS = "base", ("rightclaw", "leftclaw")  # bodies
# Name of a view -> Meta-World's camera, its field of view (degrees), and whether its picture is upside down. "corner"
# is the camera of published work; its own 60 degrees show mostly the room.
CAMERAS = {"corner": ("corner4", 42.0, True), "top": ("topview", 45.0, False)}
FINE = 128  # pixels: up to there a picture costs nearly the same, so a smaller one is the mean of several pixels
CLOSED, OPEN = 0.3, 1.0  # of what Meta-World reports as the distance of the fingers
MOST_GEOMS = 2000


@cache
def _context(library: str) -> "mujoco.GLContext":
    """The OpenGL context of this process, which all scenes are drawn in; the size is that of a window nobody sees."""
    return import_module(f"mujoco.{library}").GLContext(FINE, FINE)


class Lens:
    """Draws all scenes of one task, without shadows and reflections. It lives as long as the process.

    To free what MuJoCo holds of a drawn scene may spoil the pictures of others.
    """

    def __init__(self, model: mujoco.MjModel, side: int, library: str):
        self.side, self._gl = side, _context(library)
        self._gl.make_current()
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        self._drawn = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, MOST_GEOMS)
        self._option, self._camera, self._hand = mujoco.MjvOption(), mujoco.MjvCamera(), mujoco.MjvPerturb()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0

    @property
    def drawn_with(self) -> tuple[mujoco.MjrContext, Callable[[], None], mujoco.MjvOption]:
        """The drawing context, a function that makes its OpenGL context current, and the drawing options."""
        return self._drawn, self._gl.make_current, self._option

    def picture(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> np.ndarray:  # [side, side, 3] uint8
        """What a camera sees now, as MuJoCo's cameras have it: y up."""
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._drawn)
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, self._hand, self._camera, everything, self._scene)
        place, out = mujoco.MjrRect(0, 0, self.side, self.side), np.empty((self.side, self.side, 3), dtype=np.uint8)
        mujoco.mjr_render(place, self._scene, self._drawn)
        mujoco.mjr_readPixels(out, None, place, self._drawn)
        return out[::-1]


_LENSES: dict[tuple[str, int], Lens] = {}


class Scene:
    """One environment of Meta-World, with the goal in what its expert reads. It holds one episode at a time."""

    def __init__(self, task: str, size: int, views: tuple[str, ...], library: str):
        env = ALL_V3_ENVIRONMENTS[f"{task}-{VERSION}"]()
        env._partially_observable, env._set_task_called = False, True
        env._freeze_rand_vec, env.seeded_rand_vec = False, True  # each reset draws a start state from `np_random`
        vars(env).pop("sawyer_observation_space", None)  # that of the hidden goal, cached by the constructor
        self.env, self.size, self.model, self.data = env, size, env.model, env.data
        self._expert, self._finer = ENV_POLICY_MAP[f"{task}-{VERSION}"](), max(1, FINE // size)
        self._placed = {name: getattr(self.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")}
        self._cameras = []
        for camera, fovy_deg, turned in (CAMERAS[view] for view in views):
            number = self.model.camera(camera).id
            self.model.cam_fovy[number] = fovy_deg
            self._cameras.append((number, turned))
        side = size * self._finer
        if (task, side) not in _LENSES:
            _LENSES[task, side] = Lens(self.model, side, library)
        self._lens = _LENSES[task, side]

    def begin(self, random: np.random.Generator) -> None:
        """Begin from a start state that is drawn so, whatever was before."""
        for name, compiled in self._placed.items():
            getattr(self.model, name)[:] = compiled
        mujoco.mj_resetData(self.model, self.data)
        self.env.np_random = random
        self.seen, _ = self.env.reset()

    def step(self, action: np.ndarray) -> bool:
        """Carry out one action [4] for 1/80 s; whether the task is done now."""
        self.seen, _, _, _, about = self.env.step(action.astype(np.float32))
        return bool(about["success"])

    def expert_action(self) -> np.ndarray:  # [4] float32 in [-1, 1]
        """What the expert that comes with Meta-World would do now."""
        return np.clip(self._expert.get_action(self.seen), -1, 1).astype(np.float32)

    def places(self) -> np.ndarray:  # [6] float32 m
        """The thing that the expert looks at, and the goal."""
        return np.concatenate([self.seen[4:7], self.seen[-3:]]).astype(np.float32)

    def proprio(self) -> np.ndarray:  # [7] float32
        """The place (m) that the fingertips are driven to, the turn of the hand (rad), the opening of the fingers."""
        opening = np.clip((self.seen[3] - CLOSED) / (OPEN - CLOSED), 0.0, 1.0)
        return np.concatenate([self.data.mocap_pos[0] + TIP_M, TURN_RAD, [opening]]).astype(np.float32)

    def frames(self) -> np.ndarray:  # [V, H, W, 3] uint8
        """What the cameras see now, upright."""
        out = []
        for number, turned in self._cameras:
            picture = shrunk(self._lens.picture(self.model, self.data, number), self._finer)
            out.append(picture[::-1, ::-1] if turned else picture)
        return np.stack(out)

    def kept(self) -> tuple:
        """The present state of the episode, for `put_back`."""
        return self.bodies.state(), self.env.curr_path_length, self.seen

    def put_back(self, kept: tuple) -> None:
        """Restore a state of this episode; what follows is then the same up to rounding."""
        state, self.env.curr_path_length, self.seen = kept
        self.bodies.restore(state)

    def shift(self, offset: np.ndarray) -> None:  # [3] m
        """Move the hand and its target by an offset, within the limits of the target."""
        now = self.data.mocap_pos[0].copy()
        self.data.mocap_pos[0] = np.clip(now + offset, self.env.mocap_low, self.env.mocap_high)
        self.bodies.shift_hand(self.data.mocap_pos[0] - now)

    @cached_property
    def bodies(self) -> Bodies:
        """The true things of the scene."""
        return Bodies(self.model, self.data, ROBOT, FINGERS)

    @cached_property
    def outlines(self) -> Outlines:
        """Draws which pixels of the first camera show a thing."""
        (number, turned), *_ = self._cameras
        return Outlines(self.bodies, number, *self._lens.drawn_with, self.size, self._finer, turned)

    def camera(self) -> np.ndarray:  # [V, 3, 4] float32
        """World point (m) -> homogeneous pixel of the upright picture."""
        out = []
        for number, turned in self._cameras:
            place, axes = self.data.cam_xpos[number], self.data.cam_xmat[number].reshape(3, 3)
            out.append(camera_matrix(place, axes, self.model.cam_fovy[number], self.size, turned))
        return np.stack(out).astype(np.float32)
