"""A rank's share of its machine. Torchrun says in LOCAL_WORLD_SIZE how many ranks the machine has."""

import os

from worldenv.errors import UserError


def number(name: str, default: int | None = None) -> int:
    """A whole number in an environment variable. Raises UserError if it is none, or not set and without a default."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        found = "not set" if text is None else repr(text)
        raise UserError(
            f"the environment variable {name} is {found}; with several processes it should be a whole number: start "
            "them with torchrun, or with --launch.processes (docs/clusters.md)"
        )
    return int(text)


def ranks_here() -> int:
    """Ranks on this machine; 1 outside of a job of several."""
    return max(1, number("LOCAL_WORLD_SIZE", 1)) if number("WORLD_SIZE", 1) > 1 else 1


def own_cpus() -> int:
    """CPUs that this process may use, divided by the ranks that share them."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here())
