"""What callers give and models return, checked before any work is done, or once in the first chunk."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from inspect import isfunction
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.interfaces.observation import Observation, Starts
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.suite import Suite
from worldenv.interfaces.world import Imagined, WorldModel
from worldenv.robot.robot import Robot

MOST_EPISODES = 2**62  # greatest number of an episode


def check_kind(starts: Starts) -> None:
    """Raise UserError unless this is a `Starts` of tensors with at least one start."""
    if not isinstance(starts, Starts) or not isinstance(starts.seen, Observation):
        raise UserError(f"starts is {_described(starts)}; it should be Starts of an Observation, as a suite returns")
    for name in ("frames", "proprio", "camera", "text"):
        tensor = getattr(starts.seen, name)
        if not isinstance(tensor, Tensor) and not (tensor is None and name == "camera"):
            raise UserError(f"{name} of the starts is {_described(tensor)}; it should be a tensor")
    if not starts.seen.frames.ndim or not len(starts.seen.frames):
        raise UserError("there are no starts; at least one is needed")


def check_starts(starts: Starts, world: WorldModel) -> None:
    """Raise UserError if there is no start, or if the starts do not fit the world model."""
    check_kind(starts)
    check_members("world", world, WorldModel)
    check_count("chunk of the world", world.chunk)
    check_robot("world", world.robot)
    n = len(starts)
    if world.device.type == "meta":
        raise UserError("the world model is on the device meta, where nothing is computed; load it on cpu or cuda")
    here = f"the world model is on {world.device}; move the starts: starts.to(device)"
    _check_seen(starts.seen, n, world.size, world, "the world model takes", world.device, here)
    _check_values(starts)


def check_begun(begun: Starts, suite: Suite, count: int) -> None:
    """Raise UserError unless a suite's `reset` returned the first observations of `count` episodes."""
    check_kind(begun)
    size = tuple(begun.seen.frames.shape[2:4])
    here = "and should be on the CPU"
    _check_seen(begun.seen, count, size, suite, "the suite should return", torch.device("cpu"), here)
    _check_values(begun)


def check_stepped(seen: Observation, done: Any, begun: Starts) -> None:
    """Raise UserError unless a suite's `step` returned an observation like the first one, and a bool array [E]."""
    like = isinstance(seen, Observation) and all(isinstance(tensor, Tensor) for tensor in seen.tensors())
    if not like or len(seen) != len(begun) or not begun.seen.takes(seen) or not seen.proprio.isfinite().all():
        raise UserError(
            "the suite's `step` returned an observation that is not finite, or of other shapes than `reset`"
        )
    if not isinstance(done, np.ndarray) or done.dtype != bool or done.shape != (len(begun),):
        raise UserError(
            f"the suite's `step` returned done {_described(done)}; it should be a bool array [{len(begun)}]"
        )


def _check_values(starts: Starts) -> None:
    for name, tensor in (("proprio", starts.seen.proprio), ("camera", starts.seen.camera)):
        if tensor is not None and not tensor.isfinite().all():
            raise UserError(f"{name} of the starts has numbers that are not finite")
    check_texts(starts.texts)
    if not 0 <= int(starts.seen.text.min()) <= int(starts.seen.text.max()) < len(starts.texts):
        raise UserError(f"text of the starts names rows outside the table, which has {len(starts.texts)} instructions")


def _check_seen(
    seen: Observation, n: int, size: Sequence[int], whose: WorldModel | Suite, takes: str, on: torch.device, here: str
) -> None:
    v, p = len(whose.views), whose.robot.proprio_size
    wanted = {
        "frames": (torch.uint8, [n, v, *size, 3]),
        "proprio": (torch.float32, [n, p]),
        "camera": (torch.float32, [n, v, 3, 4]),
        "text": (torch.int64, [n]),
    }
    for name, (dtype, shape) in wanted.items():
        tensor = getattr(seen, name)
        if tensor is None:
            continue
        if tensor.dtype != dtype or list(tensor.shape) != shape or tensor.layout != torch.strided:
            raise UserError(
                f"{name} of the starts is {_described(tensor)}; {takes} {dtype} {shape}: {n} starts, {v} views "
                f"({', '.join(whose.views)}) of {' x '.join(map(str, size))} pixels, {p} numbers of proprioception"
            )
        if tensor.device != on:
            raise UserError(f"{name} of the starts is on {tensor.device}, {here}")


def check_texts(texts: Sequence[str]) -> None:
    """Raise UserError unless `texts` is a sequence of strings that say something."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"the table of instructions is {_described(texts)}; it should be a sequence of strings")
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise UserError(
            f"the table of instructions holds {shown(wrong[0])}; an instruction is a string that is not empty"
        )


def check_count(name: str, value: int) -> None:
    """Raise UserError unless a value is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UserError(f"{name} is {shown(value)}; it should be a positive integer")


def check_members(role: str, part: Any, interface: type, *more: str) -> None:
    """Raise UserError for a part that lacks a member of its interface or of `more`, or has a method that is none."""
    members = {**dict.fromkeys(interface.__annotations__), **vars(interface)}
    wanted = [name for name in members if not name.startswith("_")] + [*more]
    if missing := [name for name in wanted if not hasattr(part, name)]:
        raise UserError(
            f"the {role} {type(part).__name__} lacks {', '.join(missing)}: see worldenv.{interface.__name__}"
        )
    if wrong := [name for name in wanted if isfunction(members.get(name)) and not callable(getattr(part, name))]:
        raise UserError(f"{wrong[0]} of the {role} {type(part).__name__} should be a method")


def check_config(config: Any, kind: type) -> None:
    """Raise UserError unless the configuration is of this class."""
    if not isinstance(config, kind):
        raise UserError(f"config is a {type(config).__name__}; it should be of type {kind.__name__}")


def check_views_named(whose: str, views: Sequence[str]) -> None:
    """Raise UserError unless views are distinct names."""
    named = isinstance(views, tuple | list) and all(isinstance(view, str) for view in views)
    if not named or not views or len(set(views)) < len(views):
        raise UserError(f"{whose} has the views {shown(views)}; they should be a tuple of distinct names")


def check_robot(role: str, robot: Robot) -> None:
    """Raise UserError unless the robot of a part is one."""
    if not isinstance(robot, Robot):
        raise UserError(f"robot of the {role} is {_described(robot)}; it should be worldenv.Robot")


def check_suite(suite: Suite) -> None:
    """Raise UserError for a suite that lacks a member, or whose tasks cannot be told apart or say nothing."""
    check_members("suite", suite, Suite)
    check_count("horizon of the suite", suite.horizon)
    check_views_named("the suite", suite.views)
    check_robot("suite", suite.robot)
    if not isinstance(suite.tasks, Sequence) or not suite.tasks:
        raise UserError(f"the suite {suite.name} has no tasks; at least one is needed")
    if not all(hasattr(task, name) for task in suite.tasks for name in ("name", "instructions")):
        raise UserError(f"a task of the suite {suite.name} has no name or no instructions: see worldenv.Task")
    names = [task.name for task in suite.tasks]
    for task, name in zip(suite.tasks, names, strict=True):
        # Names become parts of the names of files.
        if not isinstance(name, str) or not name.isprintable() or not name.strip(" .") or {*name} & {*"/\\"}:
            raise UserError(
                f"a task of the suite {suite.name} is called {name!r}; it should be printable, without / or \\"
            )
        check_texts(task.instructions)
        if not task.instructions:
            raise UserError(f"the task {name} of the suite {suite.name} has no instruction; at least one is needed")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two tasks of the suite {suite.name} are called {twice[0]!r}; give each a name of its own")


def check_seed(seed: int) -> None:
    """Raise UserError unless the seed is an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise UserError(f"seed is {shown(seed)}; it should be an integer of 64 bits")


def check_run(
    starts: Starts, siblings: int, seed: int, first_episode: int, **flags: bool
) -> tuple[int, int, int]:  # the numbers, which may have been NumPy's, as Python's
    """Raise UserError for arguments of `Engine.run` that are not of their kind, or whose episodes have no numbers."""
    check_kind(starts)
    check_seed(seed)
    if isinstance(siblings, bool) or not isinstance(siblings, Integral) or siblings < 1:
        raise UserError(
            f"siblings is {shown(siblings)}; it should be a whole number: every start needs at least one episode"
        )
    counted = isinstance(first_episode, Integral) and not isinstance(first_episode, bool)
    if not counted or not 0 <= int(first_episode) <= MOST_EPISODES - len(starts) * int(siblings):
        raise UserError(f"first_episode is {shown(first_episode)}; it should be a whole number, from 0 to 2^62")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UserError(f"{name} is {shown(flag)}; it should be True or False")
    return int(siblings), int(seed), int(first_episode)


def given_tensor(name: str, value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A caller's tensor, array or nested list, on a device, without its gradient; real numbers become `dtype`.

    Raises UserError for anything else.
    """
    try:
        tensor = torch.as_tensor(value, device=device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is a {type(value).__name__}, of which no tensor can be made on {device}") from error
    if dtype is None:
        return tensor
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"{name} is {_described(tensor)}; it should be {dtype}")
    return tensor.to(dtype)


class Untouched:
    """Tensors that a model may read and not write, and tensors that it should write in place: as they are now."""

    def __init__(self, read: Any, written: Slots | None = None):  # nested containers of tensors and others
        self.read = [(tensor, tensor.clone()) for tensor in tree_leaves(read) if isinstance(tensor, Tensor)]
        self.written = written
        self.places = _places(written)

    def check(self, who: str) -> None:
        """Raise UserError if `who` wrote to what it may only read, or put other tensors into what it should write."""
        if not all(((now == before) | (now != now) & (before != before)).all() for now, before in self.read):  # NaN
            raise UserError(f"{who} changed its input in place; it should work on a copy: tensor.clone()")
        if _places(self.written) != self.places:
            raise UserError(
                f"{who} put new tensors into its state, which are lost; it should write in place: tensor.copy_(...)"
            )


def _places(state: Slots | None) -> list[tuple[int, torch.Size]]:
    return [] if state is None else [(tensor.data_ptr(), tensor.shape) for tensor in state.tensors()]


def check_state(who: str, state: Slots, seen: Observation) -> None:
    """Raise UserError unless a model's `begin` returned a row for each episode."""
    check_rows(f"{who}'s `begin` returned", state, len(seen), seen.frames.device)


def check_rows(what: str, rows: Slots, count: int, device: torch.device) -> None:
    """Raise UserError unless `rows` is a dataclass of `Slots` whose tensors have `count` rows on this device."""
    if not isinstance(rows, Slots) or not is_dataclass(rows) or next(rows.tensors(), None) is None:
        raise UserError(f"{what} {_described(rows)}; it should be a dataclass of tensors that inherits worldenv.Slots")
    for tensor in rows.tensors():
        if not isinstance(tensor, Tensor) or not tensor.ndim or len(tensor) != count or tensor.device != device:
            raise UserError(f"{what} {_described(tensor)}; it should be tensors of {count} rows on {device}")
    try:
        rows.each(lambda tensor: tensor)
    except TypeError as error:
        raise UserError(
            f"{what} {_described(rows)}, which cannot be made from its fields by position ({error}); define it "
            "without kw_only"
        ) from error


def check_decision(decision: Decision, seen: Observation) -> None:
    """Raise UserError unless action, log-probability and record of a decision are on the device of the episodes."""
    for name in ("action", "log_prob"):
        tensor = getattr(decision, name)
        if tensor.device != seen.frames.device:
            raise UserError(f"the policy returned {name} on {tensor.device}; the episodes are on {seen.frames.device}")
    if decision.record is not None:
        check_rows("the policy returned as record", decision.record, len(seen), seen.frames.device)


def check_imagined(imagined: Imagined, world: WorldModel, seen: Observation, chunk: int) -> None:
    """Raise UserError unless the world model imagined a chunk of the shapes and dtypes that its interface says."""
    if not isinstance(imagined, Imagined):
        raise UserError(f"the world model's `imagine` returned {_described(imagined)}; it should be Imagined")
    b, views = len(seen), list(seen.frames.shape[1:])
    wanted = {
        "frames": (torch.uint8, [b, chunk, *views]),
        "proprio": (torch.float32, [b, chunk, world.robot.proprio_size]),
        "finite": (torch.bool, [b]),
    }
    for name, (dtype, shape) in wanted.items():
        _check_returned("the world model imagined", name, getattr(imagined, name), dtype, shape, seen.frames.device)
    if imagined.held is not None:
        _check_returned("the world model imagined", "held", imagined.held, torch.bool, [b], seen.frames.device)
    if imagined.doubt is not None:
        _check_returned("the world model imagined", "doubt", imagined.doubt, torch.float32, [b], seen.frames.device)
    if imagined.camera is not None:
        if seen.camera is None:
            raise UserError("the world model imagined where cameras are, and the starts have none; it should be None")
        wanted = [b, chunk, *seen.camera.shape[1:]]
        _check_returned(
            "the world model imagined", "camera", imagined.camera, torch.float32, wanted, seen.frames.device
        )


def check_finite(imagined: Imagined) -> None:
    """Raise UserError unless proprioception is finite and doubt in [0, 1] wherever the world model says so."""
    if imagined.doubt is not None and not (((imagined.doubt >= 0) & (imagined.doubt <= 1)) | ~imagined.finite).all():
        low, high = imagined.doubt.aminmax()
        raise UserError(f"the world model imagined doubt from {low:g} to {high:g}; it should be in [0, 1]")
    for name in ("proprio", "camera"):
        if (part := getattr(imagined, name)) is not None and not (
            part.isfinite().flatten(1).all(1) | ~imagined.finite
        ).all():
            raise UserError(f"the world model imagined {name} that is not finite, in episodes that it says are finite")


def check_judged(judged: Any, episodes: int, frames: int, device: torch.device | None = None) -> None:
    """Raise UserError unless a reflector returned reward and stop of the shapes and dtypes that its interface says."""
    if not isinstance(judged, tuple | list) or len(judged) != 2:
        raise UserError(f"the reflector's `judge` returned {_described(judged)}; it should be reward and stop")
    for name, tensor, dtype in (("reward", judged[0], torch.float32), ("stop", judged[1], torch.bool)):
        _check_returned("the reflector returned", name, tensor, dtype, [episodes, frames], device)


def check_rewards(reward: Tensor) -> None:
    """Raise UserError if a finite reward lies outside [0, 1]."""
    wrong = reward.isfinite() & ((reward < 0) | (reward > 1))
    if wrong.any():
        low, high = reward[wrong].aminmax()
        raise UserError(f"the reflector returned rewards from {low:g} to {high:g}; every reward should be in [0, 1]")


def _check_returned(
    who: str, name: str, tensor: Any, dtype: torch.dtype, shape: list[int], device: torch.device | None
) -> None:
    fits = isinstance(tensor, Tensor) and tensor.dtype == dtype and list(tensor.shape) == shape
    if not fits:
        raise UserError(f"{who} {name} {_described(tensor)}; it should be {dtype} {shape}")
    if device is not None and tensor.device != device:
        raise UserError(f"{who} {name} on {tensor.device}; the episodes are on {device}")


def _described(value: Any) -> str:
    described = isinstance(value, Tensor | np.ndarray)
    return f"{value.dtype} {list(value.shape)}" if described else f"a {type(value).__name__}"
