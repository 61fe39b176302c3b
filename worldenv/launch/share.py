"""A rank's share of its machine. Torchrun says in LOCAL_WORLD_SIZE how many ranks the machine has."""

import os

from worldenv.errors import UserError


def number(name: str, default: int | None = None) -> int:
    """A whole number of the environment. Raises UserError if it is none, or not there and without a default."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UserError(
            f"{name} of the environment is {text!r}; with several processes it should be a whole number: start them "
            "with torchrun, or with --launch.processes (docs/clusters.md)"
        )
    return int(text)


def ranks_here() -> int:
    """Ranks on this machine; 1 outside of a job of several."""
    return max(1, number("LOCAL_WORLD_SIZE", 1)) if number("WORLD_SIZE", 1) > 1 else 1


def own_cpus() -> int:
    """CPUs that this process may use, divided by the ranks that share them."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here())
