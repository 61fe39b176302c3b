"""How many processes a job has: the fields of `worldenv-train --launch.*`."""

from dataclasses import dataclass

from worldenv.fields import Within, check_fields

MOST_PROCESSES = 1024  # on one machine


@dataclass(frozen=True)
class LaunchConfig:
    """Several processes, each a rank that practises its share of the starts (docs/clusters.md); torchrun does the
    same."""

    processes: int = 1  # on this machine; for several machines: torchrun

    def __post_init__(self) -> None:
        check_fields(self, processes=Within(1, MOST_PROCESSES))
