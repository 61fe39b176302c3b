"""Sound parts of a run, each with one thing that is against its interface."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sound_models import TINY
from torch import Tensor

import worldenv


@dataclass
class Rows(worldenv.Slots):
    rows: Any


class Altered:
    """A part that is like another one but for what is given."""

    def __init__(self, part: Any, **members: Any):
        self.__dict__.update(members, part=part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)


@cache
def parts_of() -> worldenv.Parts:
    return replace(TINY.parts(), suite=suite_of())


@cache
def suite_of() -> Any:
    suite = TINY.parts().suite
    suite.horizon = 8
    return suite


def wrong(role: str, **members: Any) -> Callable[[], worldenv.Parts]:
    return lambda: replace(parts_of(), **{role: Altered(getattr(parts_of(), role), **members)})


def returning(role: str, method: str, change: Callable[[Any], Any], after: int = 0) -> Callable[[], worldenv.Parts]:
    """Parts of which one returns change(what it should), from a call on."""

    def make() -> worldenv.Parts:
        calls = []

        def altered(*given: Any, **more: Any) -> Any:
            calls.append(1)
            out = getattr(getattr(parts_of(), role), method)(*given, **more)
            return out if len(calls) <= after else change(out)

        return wrong(role, **{method: altered})()

    return make


def writing(role: str, method: str, change: Callable[..., None]) -> Callable[[], worldenv.Parts]:
    """Parts of which one changes what it was given after it has used it."""

    def altered(*given: Any, **more: Any) -> Any:
        out = getattr(getattr(parts_of(), role), method)(*given, **more)
        change(*given)
        return out

    return wrong(role, **{method: altered})


def fields(**changes: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    return lambda out: replace(out, **{name: change(getattr(out, name)) for name, change in changes.items()})


def _new_total(frames: Tensor, state: Any) -> None:
    state.total = state.total.clone()


NOTHING = {"None": lambda out: None, "a number": lambda out: 3, "a list": lambda out: [out], "a dict": lambda out: {}}
OTHER = {
    "int": lambda x: x.int(),
    "complex": lambda x: x.to(torch.complex64),
    "None": lambda x: None,
    "fewer": lambda x: x[:-1],
    "scalar": lambda x: x.flatten()[0],
    "meta": lambda x: x.to("meta"),
    "numpy": lambda x: x.numpy(),
}
WRONG_PARTS: dict[str, Callable[[], worldenv.Parts]] = {
    **{f"act {how}": returning("policy", "act", change) for how, change in NOTHING.items()},
    **{
        f"act {field} {how}": returning("policy", "act", fields(**{field: change}))
        for field in ("action", "log_prob")
        for how, change in OTHER.items()
    },
    "act later": returning("policy", "act", fields(action=lambda x: x[:, :2]), after=2),
    "act record rows": returning("policy", "act", fields(record=lambda x: x[:0])),
    "act record list": returning("policy", "act", fields(record=lambda x: [x])),
    "act record numbers": returning("policy", "act", fields(record=lambda x: Rows(3))),
    "act record scalar": returning("policy", "act", fields(record=lambda x: Rows(torch.tensor(3)))),
    "act writes frames": writing("policy", "act", lambda seen, *_: seen.frames.add_(1)),
    "act writes proprio": writing("policy", "act", lambda seen, *_: seen.proprio.mul_(0.5)),
    **{f"policy chunk {v}": wrong("policy", chunk=v) for v in (0, -1, None, 4.0, "4", True, 3)},
    **{f"policy views {v}": wrong("policy", views=v) for v in (None, (), "agentview", ("wrist",), (3,))},
    **{f"world chunk {v}": wrong("world", chunk=v) for v in (0, None, 4.0, "4", True)},
    **{f"world views {v}": wrong("world", views=v) for v in (None, (), "agentview", ("wrist",), ("agentview",) * 2)},
    **{f"world robot {v}": wrong("world", robot=v) for v in (None, 3, SimpleNamespace(proprio_size=7, action_size=7))},
    **{f"world begin {how}": returning("world", "begin", change) for how, change in NOTHING.items()},
    "world begin fewer": returning("world", "begin", lambda out: out[:0]),
    "world begin numbers": returning("world", "begin", lambda out: Rows(3)),
    **{f"imagine {how}": returning("world", "imagine", change) for how, change in NOTHING.items()},
    **{
        f"imagine {field} {how}": returning("world", "imagine", fields(**{field: change}))
        for field in ("frames", "proprio", "finite")
        for how, change in OTHER.items()
    },
    "imagine proprio not finite": returning("world", "imagine", fields(proprio=lambda x: x * math.nan)),
    "imagine proprio double": returning("world", "imagine", fields(proprio=lambda x: x.double())),
    "imagine writes action": writing("world", "imagine", lambda memory, seen, action, key: action.add_(0.1)),
    "imagine writes frames": writing("world", "imagine", lambda memory, seen, action, key: seen.frames.add_(1)),
    **{f"judge {how}": returning("reflector", "judge", change) for how, change in NOTHING.items()},
    **{
        f"judge reward {how}": returning("reflector", "judge", lambda out, change=change: (change(out[0]), out[1]))
        for how, change in OTHER.items()
    },
    **{
        f"judge stop {how}": returning("reflector", "judge", lambda out, change=change: (out[0], change(out[1])))
        for how, change in OTHER.items()
    },
    "judge three": returning("reflector", "judge", lambda out: (*out, out[0])),
    "judge above 1": returning("reflector", "judge", lambda out: (out[0] + 1.5, out[1])),
    "judge below 0": returning("reflector", "judge", lambda out: (out[0] - 1.5, out[1])),
    "judge above 1 later": returning("reflector", "judge", lambda out: (out[0] + 1.5, out[1]), after=1),
    "judge writes frames": writing("reflector", "judge", lambda frames, state: frames.zero_()),
    "judge replaces state": writing("reflector", "judge", _new_total),
    **{f"reflector begin {how}": returning("reflector", "begin", change) for how, change in NOTHING.items()},
    "reflector begin fewer": returning("reflector", "begin", lambda out: out[:0]),
    "no act": wrong("policy", act=None),
    "no judge": wrong("reflector", judge=3),
}


@dataclass(frozen=True)
class Renamed:
    """A task of another name or with other instructions."""

    task: Any
    name: Any
    instructions: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def _tasks(name: Any = "a", instructions: Any = ("put the red block on the green pad",)) -> tuple:
    first, second = suite_of().tasks[:2]
    return Renamed(first, name, instructions), Renamed(second, "b", instructions)


def _suite(**members: Any) -> Callable[[], Altered]:
    return lambda: Altered(suite_of(), **members)


def _reset(change: Callable[[worldenv.Starts], Any]) -> Callable[[], Altered]:
    return _suite(reset=lambda *given: change(suite_of().reset(*given)))


def _step(change: Callable[[Any, np.ndarray], Any]) -> Callable[[], Altered]:
    return _suite(step=lambda action: change(*suite_of().step(action)))


def _seen(**changes: Callable[[Tensor], Any]) -> Callable[[worldenv.Starts], worldenv.Starts]:
    return lambda begun: worldenv.Starts(fields(**changes)(begun.seen), begun.texts)


WRONG_SUITES: dict[str, Callable[[], Altered]] = {
    **{f"task called {name!r}": _suite(tasks=_tasks(name)) for name in ("", "a/b", "..", "b", None, 3, "a\nb", " ")},
    **{
        f"instructions {given!r}": _suite(tasks=_tasks(instructions=given))
        for given in ((), ("",), (3,), "put it", None, (" ",))
    },
    **{f"tasks {given!r}": _suite(tasks=given) for given in ((), None, 3, "abc", (None,))},
    **{f"horizon {given!r}": _suite(horizon=given) for given in (0, -1, None, 2.5, "8", math.nan, True)},
    **{f"views {given!r}": _suite(views=given) for given in ((), None, "agentview", (3,), ("a", "a"))},
    "robot": _suite(robot=None),
    **{f"reset {how}": _reset(change) for how, change in NOTHING.items()},
    **{
        f"reset {field} {how}": _reset(_seen(**{field: change}))
        for field in ("frames", "proprio", "camera", "text")
        for how, change in OTHER.items()
        if (field, how) != ("camera", "None")
    },
    "reset texts": _reset(lambda begun: worldenv.Starts(begun.seen, ())),
    "reset rows": _reset(_seen(text=lambda x: x + 9)),
    "reset not finite": _reset(_seen(proprio=lambda x: x * math.nan)),
    "step one": _step(lambda seen, done: seen),
    "step nothing": _step(lambda seen, done: None),
    "step done int": _step(lambda seen, done: (seen, done.astype(int))),
    "step done list": _step(lambda seen, done: (seen, done.tolist())),
    "step done one": _step(lambda seen, done: (seen, done[:1])),
    "step done tensor": _step(lambda seen, done: (seen, torch.from_numpy(done))),
    "step fewer": _step(lambda seen, done: (seen[:1], done)),
    "step frames float": _step(lambda seen, done: (fields(frames=lambda x: x.float())(seen), done)),
    "step proprio": _step(lambda seen, done: (fields(proprio=lambda x: x * math.nan)(seen), done)),
    "step frames": _step(lambda seen, done: (fields(frames=lambda x: x[:, :, :8])(seen), done)),
}
