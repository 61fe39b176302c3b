"""The physics of the embedded suite: grippers over tables, E of them at once, in C++ (csrc/tabletop)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worldenv import _tabletop
from worldenv.errors import UserError, nearest
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.suites.tabletop.scenes import COLORS, FAMILIES, KINDS, SIZES, TASKS, Task

SPLITS = ("train", "validation", "test")
HORIZON = 40  # steps; the scripted expert needs 12 to 30
_LATTICE = 1024  # cells along the moved object's x shift; each cell has one slot per split, so splits share no start


def task_by_name(name: str) -> Task:
    """The task of that name. Raises UserError with the nearest valid name."""
    for task in TASKS:
        if task.name == name:
            return task
    raise UserError(f"unknown task {name!r}{nearest(str(name), [task.name for task in TASKS])}")


def start_state(task: Task, start: int, split: str) -> tuple[np.ndarray, str]:
    """The state ([79] float64, layout of csrc/tabletop/world.h) and the instruction of one start.

    Starts are a pure function of (task, start, split), and any integer is valid. The splits share no start: the x shift
    of the moved object lies on a lattice, and the cells of the lattice belong to the splits in turn. Raises UserError
    for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{nearest(str(split), SPLITS)}")
    entropy = [hash_name(task.name), start & (2**64 - 1)]
    random = np.random.Generator(np.random.Philox(key=np.array(entropy, dtype=np.uint64)).jumped(SPLITS.index(split)))
    world = np.zeros(_tabletop.row)
    world[:3] = (0.0, 0.0, 0.13) + random.uniform(-1, 1, 3) * (0.04, 0.03, 0.02)
    world[6:8] = (1, -1)
    world[12:15] = (FAMILIES.index(task.family), task.object, task.goal)
    shift = random.uniform(-1, 1, (len(task.items), 3))
    cell = np.floor((shift[task.object, 0] + 1) / 2 * _LATTICE)
    shift[task.object, 0] = (cell + (SPLITS.index(split) + 0.5) / len(SPLITS)) / _LATTICE * 2 - 1
    for row, item, (dx, dy, turn) in zip(world[15:].reshape(-1, 8), task.items, shift, strict=False):
        x, y = item.x + dx * task.jitter, item.y + dy * task.jitter
        yaw = turn * 0.25 if item.kind == "block" else 0.0
        row[:] = (KINDS.index(item.kind), COLORS.index(item.color), x, y, 0.0, yaw, *SIZES[item.kind])
    return world, str(random.choice(task.instructions))


def hash_name(name: str) -> int:
    """A 64-bit FNV-1a hash: the same on every machine and in every process, unlike `hash`."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


class Tabletop:
    """E tables at once; frames are uint8 [E, H, W, 3], proprio float32 [E, 7], as in worldenv.robot.kinematics.

    Deterministic: the same starts and actions give the same frames, whatever the number of threads. None: as many as
    torch uses, which respects the CPUs that are granted (taskset, OMP_NUM_THREADS).
    """

    def __init__(self, image_size: int = 64, threads: int | None = None, kinematics: Kinematics | None = None):
        if not 16 <= image_size <= 256:
            raise UserError(f"image_size is {image_size}; it must lie between 16 and 256")
        self.camera = tabletop_camera(image_size)
        self.kinematics = kinematics or Kinematics()
        self.image_size = image_size
        self._threads = threads
        self.instructions: list[str] = []
        self.tasks: list[Task] = []

    def __len__(self) -> int:
        return len(self.tasks)

    def reset(self, tasks: Sequence[Task], starts: Sequence[int], split: str) -> None:
        """Begin one episode for each (task, start). Raises UserError if the lengths differ or nothing is given."""
        if len(tasks) != len(starts) or not len(tasks):
            raise UserError(
                f"reset got {len(tasks)} tasks and {len(starts)} starts; give one start for each task, at least one"
            )
        pairs = [start_state(task, int(start), split) for task, start in zip(tasks, starts, strict=True)]
        self.tasks = list(tasks)
        self.instructions = [instruction for _, instruction in pairs]
        self._sim = self._simulator()
        self._sim.restore(np.stack([world for world, _ in pairs]), True)

    def _simulator(self) -> _tabletop.Simulator:
        camera = (np.ascontiguousarray(m) for m in (self.camera.intrinsics, self.camera.extrinsics))
        threads = self._threads or torch.get_num_threads()
        return _tabletop.Simulator(len(self), self.image_size, threads, *camera, self.kinematics.as_array())

    def __getstate__(self) -> dict[str, Any]:
        """For copies, and for other processes: the state of the tables in place of the simulator."""
        state = self.state() if self.tasks else None
        return {name: value for name, value in vars(self).items() if name != "_sim"} | {"_state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tables = state.pop("_state")
        vars(self).update(state)
        if tables is not None:
            self._sim = self._simulator()
            self._sim.restore(tables, False)

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Move the active worlds by one action [E, 7] in [-1, 1]; returns [E] bool: which worlds satisfy their task.

        Raises UserError for a wrong shape, a non-finite value or a call before `reset`.
        """
        sim = self._begun("step")
        actions = np.ascontiguousarray(actions, dtype=np.float32)
        if actions.shape != (len(self), 7):
            raise UserError(f"actions has shape {list(actions.shape)}; expected [{len(self)}, 7]")
        if not np.isfinite(actions).all():
            bad = np.flatnonzero(~np.isfinite(actions).all(axis=1))[:5].tolist()
            raise UserError(f"actions holds NaN or infinity in worlds {bad}; check the policy's output")
        return sim.step(actions, self._mask(active))

    def success(self) -> np.ndarray:  # [E] bool
        """Which worlds satisfy their task now."""
        return self._begun("success").success()

    def frames(self, out: np.ndarray | None = None, active: np.ndarray | None = None) -> np.ndarray:
        """The camera's picture of each active world, uint8 [E, H, W, 3], written into `out` if given.

        Raises UserError if `out` cannot be written in place, or for a call before `reset`.
        """
        sim, shape = self._begun("frames"), (len(self), self.image_size, self.image_size, 3)
        if out is None:
            out = np.zeros(shape, dtype=np.uint8)
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.carray:
            raise UserError(f"out is {out.dtype} {list(out.shape)}; expected contiguous, writable uint8 {list(shape)}")
        sim.render(out, self._mask(active))
        return out

    def proprio(self) -> np.ndarray:  # [E, 7] float32
        return self.state()[:, :7].astype(np.float32)

    def state(self) -> np.ndarray:
        """The whole state of every table, float64 [E, 79]; `restore` brings it back exactly."""
        return self._begun("state").state()

    def restore(self, state: np.ndarray) -> None:
        """Continue from a saved state. Raises UserError for another shape or values that `state` never returns."""
        sim = self._begun("restore")
        state = np.ascontiguousarray(state, dtype=np.float64)
        if state.shape != (len(self), _tabletop.row) or not np.isfinite(state).all():
            raise UserError(f"state must be finite float64 [{len(self)}, {_tabletop.row}], got {list(state.shape)}")
        _check_indices(state)
        sim.restore(state, False)

    def _begun(self, caller: str) -> _tabletop.Simulator:
        if not self.tasks:
            raise UserError(f"{caller} was called before reset; call reset(tasks, starts, split) first")
        return self._sim

    def _mask(self, active: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self), dtype=bool) if active is None else np.ascontiguousarray(active, dtype=bool)


def _check_indices(state: np.ndarray) -> None:  # [E, 79], finite
    """Refuse numbers that the compiled code would use as an index out of range."""
    entity, last = state[:, 15:].reshape(len(state), -1, 8), _tabletop.max_entities - 1
    fields = {
        "held": (state[:, 7:8], -1, last),
        "family": (state[:, 12:13], 0, len(FAMILIES) - 1),
        "object": (state[:, 13:14], 0, last),
        "goal": (state[:, 14:15], 0, last),
        "kind": (entity[..., 0], 0, len(KINDS) - 1),
        "color": (entity[..., 1], 0, len(COLORS) - 1),
    }
    for name, (value, low, high) in fields.items():
        bad = (value < low) | (value > high) | (value != np.floor(value))
        if bad.any():
            world = int(bad.any(axis=1).argmax())
            found = f"{name} = {value[bad][0]:g} in world {world}; expected a whole number from {low} to {high}"
            raise UserError(f"state holds {found}; pass what state() returned")
