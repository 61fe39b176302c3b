"""The ten tasks of `tabletop`, and the disjoint tasks for pretraining: what lies on the table and what to do."""

from dataclasses import dataclass

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
KINDS = ("none", "block", "can", "puck", "pad", "tray")
FAMILIES = ("place", "push", "stack", "put-into")
SIZES = {
    "block": (0.022, 0.044),
    "can": (0.021, 0.052),
    "puck": (0.042, 0.022),
    "pad": (0.045, 0.0),
    "tray": (0.055, 0.022),
}
TEMPLATES = {
    "place": (
        "put the {o} on the {g}",
        "place the {o} on the {g}",
        "move the {o} onto the {g}",
        "set the {o} down on the {g}",
    ),
    "push": (
        "push the {o} to the {g}",
        "slide the {o} to the {g}",
        "push the {o} onto the {g}",
        "slide the {o} over to the {g}",
    ),
    "stack": (
        "stack the {o} on the {g}",
        "put the {o} on top of the {g}",
        "stack the {o} on top of the {g}",
        "set the {o} on top of the {g}",
    ),
    "put-into": (
        "put the {o} in the {g}",
        "place the {o} into the {g}",
        "drop the {o} in the {g}",
        "move the {o} into the {g}",
    ),
}
REACH_X, REACH_Y = (-0.15, 0.15), (-0.09, 0.16)  # metres, where things are laid out


@dataclass(frozen=True)
class Item:
    """One object, pad or tray on the table; `x`, `y` are its nominal place in metres."""

    kind: str
    color: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return "tray" if self.kind == "tray" else f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Task:
    """Do `family` with `items[object]` and `items[goal]`; every start shifts each item by at most `jitter` metres."""

    name: str
    family: str
    items: tuple[Item, ...]
    object: int
    goal: int
    jitter: float = 0.025

    @property
    def instructions(self) -> tuple[str, ...]:
        """All paraphrases; the first is the canonical one."""
        names = {"o": self.items[self.object].name, "g": self.items[self.goal].name}
        return tuple(template.format(**names) for template in TEMPLATES[self.family])

    @property
    def goal_key(self) -> tuple[str, str, str]:
        return self.family, self.items[self.object].name, self.items[self.goal].name


_PADS = (
    Item("block", "red", -0.11, -0.02),
    Item("can", "blue", 0.0, -0.05),
    Item("block", "yellow", 0.11, -0.02),
    Item("pad", "green", -0.07, 0.11),
    Item("pad", "purple", 0.08, 0.11),
)
_PUCKS = (
    Item("puck", "orange", -0.08, -0.02),
    Item("puck", "green", 0.08, -0.02),
    Item("pad", "red", -0.07, 0.13),
    Item("pad", "cyan", 0.08, 0.13),
    Item("block", "blue", 0.0, 0.06),
)
_STACKS = (
    Item("block", "green", -0.11, 0.02),
    Item("block", "purple", 0.02, 0.09),
    Item("can", "red", 0.11, -0.01),
    Item("block", "white", -0.03, -0.05),
    Item("can", "yellow", -0.12, 0.12),
)
_TRAY = (
    Item("tray", "white", 0.08, 0.09),
    Item("can", "purple", -0.11, 0.02),
    Item("block", "orange", -0.02, -0.05),
    Item("can", "white", 0.11, -0.05),
    Item("block", "cyan", -0.05, 0.12),
)

TASKS: tuple[Task, ...] = (
    Task("red-block-on-green-pad", "place", _PADS, 0, 3),
    Task("blue-can-on-purple-pad", "place", _PADS, 1, 4),
    Task("yellow-block-on-purple-pad", "place", _PADS, 2, 4),
    Task("orange-puck-to-red-pad", "push", _PUCKS, 0, 2),
    Task("green-puck-to-cyan-pad", "push", _PUCKS, 1, 3),
    Task("green-block-on-purple-block", "stack", _STACKS, 0, 1),
    Task("red-can-on-purple-block", "stack", _STACKS, 2, 1),
    Task("purple-can-in-tray", "put-into", _TRAY, 1, 0),
    Task("orange-block-in-tray", "put-into", _TRAY, 2, 0),
    Task("white-can-in-tray", "put-into", _TRAY, 3, 0),
)
_HELD_OUT = {task.goal_key for task in TASKS}


def siblings(task: Task) -> tuple[Task, ...]:
    """The other tasks that share the task's layout: same picture, other instruction."""
    return tuple(other for other in TASKS if other.items == task.items and other != task)


def _goal_kind(family: str) -> tuple[str, ...]:
    return {"place": ("pad",), "push": ("pad",), "stack": ("block", "can"), "put-into": ("tray",)}[family]


def pretraining_task(index: int) -> Task:
    """The `index`-th task of pretraining: its own random layout, never a (family, object, goal) of `TASKS`."""
    random = np.random.Generator(np.random.Philox(key=[index, 0x7AB1E]))
    while True:
        family = FAMILIES[random.integers(4)]
        moved = "puck" if family == "push" else random.choice(["block", "can"])
        goal = random.choice(_goal_kind(family))
        kinds = [moved, goal]
        extra = ["block", "can", "block", "can", "puck", "pad", "pad"]
        kinds += list(random.choice(extra, size=random.integers(2, 4), replace=False))
        colors = list(random.permutation(len(COLORS)))
        places = _scatter(random, kinds)
        if places is None:
            continue
        names = (COLORS[color] for color in colors)
        items = tuple(Item(kind, next(names), *place) for kind, place in zip(kinds, places, strict=True))
        task = Task(f"pretraining-{index}", family, items, 0, 1)
        if task.goal_key not in _HELD_OUT:
            return task


def _scatter(random: np.random.Generator, kinds: list[str]) -> list[tuple[float, float]] | None:
    places: list[tuple[float, float]] = []
    for kind in kinds:
        for _ in range(60):
            x, y = float(random.uniform(*REACH_X)), float(random.uniform(*REACH_Y))
            if kind == "puck" and y > 0.06:
                continue  # room to get behind it
            laid = zip(places, kinds, strict=False)
            if all(np.hypot(x - px, y - py) - SIZES[kind][0] - SIZES[k][0] > 0.03 for (px, py), k in laid):
                places.append((x, y))
                break
        else:
            return None
    return places
