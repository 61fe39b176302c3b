"""The names of LIBERO's suites, and what a task of one of them is."""

import re
from dataclasses import dataclass
from typing import Any

# Actions after which an episode ends, as published evaluations have it.
STANDARD = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
# LIBERO-PRO: other words, other looks of the object, objects in each other's places, another goal.
PERTURBATIONS = ("lan", "object", "swap", "task")
# Parts of suites in which models can be made in hours on two cores, by name: the suite, and what differs from it. An
# action is held for two steps, and an episode has whole chunks of 8. The tasks are some that the expert always solves;
# the others are left for pretraining. Task 0 of libero_object can be done without looking.
_SMALL = {"repeat": 2, "practice_starts": 240}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "libero_object-small": ("libero_object", {**_SMALL, "tasks": (1, 3, 4, 6, 7, 9), "horizon": 96}),
    "libero_object-shuffled": (
        "libero_object",
        {**_SMALL, "tasks": (1, 3, 4, 6, 7, 9), "horizon": 96, "shuffled": True},
    ),
    "libero_spatial-small": ("libero_spatial", {**_SMALL, "tasks": (0, 2, 3, 5, 6, 8), "horizon": 104}),
    "libero_object-tiny": ("libero_object", {**_SMALL, "tasks": (4,), "horizon": 16, "practice_starts": 8}),
}
# The tasks of LIBERO-PRO with the same numbers, to measure what was made for a small suite.
PERTURBED: dict[str, tuple[str, dict[str, Any]]] = {
    f"{benchmark}_{change}-small": (f"{benchmark}_{change}", given)
    for name, (benchmark, given) in SMALL.items()
    if name.endswith("-small")
    for change in PERTURBATIONS
}
# Tasks of libero_90 to pretrain on, by how their names end: one thing is picked up and put somewhere.
PICKED = ("_in_the_basket", "_in_the_tray", "_plate")
# By suite, in m: `ground_m` and `clear_m` of its robot. libero_10 and libero_90 have tables of several heights.
HEIGHTS_M = {"libero_object": (0.0, 0.2), "libero_spatial": (0.9, 1.15), "libero_goal": (0.9, 1.15)}
HORIZONS = {
    **STANDARD,
    "libero_90": 400,
    **{f"{name}_{change}": horizon for name, horizon in STANDARD.items() for change in PERTURBATIONS},
}


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite: what to do, and the official initial states to do it from."""

    name: str  # the stem of its file
    number: int  # within the suite
    instruction: str
    states: int  # official initial states
    things: tuple[str, ...] = ()  # kinds of the things of its scene that can be carried, and of what it is put into

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,)


def thing_of(name: str) -> str:
    """The kind of thing that the task of LIBERO Object with this name asks for."""
    return re.fullmatch(r"pick_up_the_(.+)_and_place_it_in_the_basket", name)[1]
