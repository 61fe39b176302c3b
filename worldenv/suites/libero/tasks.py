"""The names of LIBERO's suites, and what a task of one of them is."""

from dataclasses import dataclass

# Actions after which an episode ends, as published evaluations have it.
STANDARD = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
# LIBERO-PRO: other words, other looks of the object, objects in each other's places, another goal.
PERTURBATIONS = ("lan", "object", "swap", "task")
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

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,)
