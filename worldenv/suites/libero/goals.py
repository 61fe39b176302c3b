"""The goal of a task as a list of relations, in the order in which an expert works them off."""

from collections.abc import Sequence

# What is opened is opened before something is put into it, and what is closed is closed last.
ORDER = {"open": 0, "turnon": 1, "turnoff": 1, "on": 2, "in": 2, "close": 3}
Goal = tuple[str, ...]  # (on, bowl, plate), (in, can, region of the basket), (open, drawer), (turnon, stove)


def ordered(goals: Sequence[Sequence[str]]) -> list[Goal]:
    """The relations of a goal in the order in which they are worked off; else as the file of the task has them.

    What no skill is known for comes last.
    """
    return sorted((tuple(goal) for goal in goals), key=lambda goal: ORDER.get(goal[0], len(ORDER)))


def beside(goals: Sequence[Goal], goal: Goal) -> tuple[int, int]:
    """Of all things that have to be put on the same place as that of a relation: its number, and how many they are."""
    names = [name for relation, name, *where in goals if (relation, *where) == (goal[0], *goal[2:])]
    return names.index(goal[1]), len(names)
